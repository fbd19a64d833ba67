//! vaio-host
