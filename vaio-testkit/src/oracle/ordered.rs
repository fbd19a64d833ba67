//! placeholder
/// a
#[derive(Debug)]
pub struct Cut;
/// a
#[derive(Debug)]
pub struct OrderedCheck;
/// a
#[derive(Debug)]
pub struct Spans;
