//! Several hosts: links, leases, hand-over and fail-over; the correct twins raise no alarm, and the
//! kit finds what is put into them.

mod cases;
mod subjects;
