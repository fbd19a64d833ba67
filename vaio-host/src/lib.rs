//! vaio-host
pub mod device;
pub mod runtime;
