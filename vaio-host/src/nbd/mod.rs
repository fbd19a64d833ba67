//! Network block device: the server in front of a stack.

pub mod proto;
