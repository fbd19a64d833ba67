//! The bug zoo: what is known to go wrong in filters, each as a switch in a correct
//! [twin](crate::twins).

mod bug;

pub use bug::Bug;
