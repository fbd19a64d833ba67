//! vaio-host
pub mod device;
pub mod nbd;
pub mod runtime;
