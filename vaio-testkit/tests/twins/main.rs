//! The twins as filters on a disk over plain memory: their functions, without crashes and faults,
//! which the zoo test brings.

#![allow(unreachable_pub, reason = "one crate of several test files")]

mod mirror;
mod others;
mod support;
mod write_back;
