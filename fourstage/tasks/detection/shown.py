"""The score from which on detections are shown. No torch, so that predictions can do without it."""

SHOWN_SCORE = 0.3  # detections with this score or more are shown and compared
