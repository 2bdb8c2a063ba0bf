//! The process that owns guest memory and vCPUs, and trusts no worker.
