//! The twins as filters on a disk over plain memory: their functions, without crashes and faults,
//! which the zoo test brings.

#![allow(unreachable_pub, reason = "one crate of several test files")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod mirror;
mod others;
mod support;
mod switches;
mod write_back;
