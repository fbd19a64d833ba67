//! vaio-host
pub mod nbd;
