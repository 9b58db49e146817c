"""`fourstage verify`: which published file a checkpoint is, and whether it is what its source says."""

from fourstage.run.verify.verify import Check, Verified, verify

__all__ = ["Check", "Verified", "verify"]
