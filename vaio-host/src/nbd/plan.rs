//! What to do with one request: the transmission phase's decisions, pure.
//!
//! Invariant: however wrong a request is, the plan says how many bytes of payload follow it, so
//! that the connection stays in sync; only a payload beyond [`DRAIN_MAX`] ends it.

use vaio_core::{Error, ErrorKind, Extent, Op};

use super::proto::{Command, Errno, PAYLOAD_MAX, ReplyMode, Request, StatusPayload, cmd_flag};

/// Longest payload of a refused request that is read and dropped, in bytes. A peer that claims
/// more is not in sync, and is closed.
pub(super) const DRAIN_MAX: u64 = 4 * PAYLOAD_MAX as u64;

/// What one request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// An IO without payload.
    Io(Op),
    /// A write whose payload of `len` bytes follows.
    Write { len: u32, fua: bool },
    /// A block status query; `payload` bytes that select contexts follow.
    Status {
        /// Bytes of effect; a payload says so itself.
        len: u64,
        one: bool,
        payload: u32,
    },
    /// Fails; `drain` bytes of payload follow.
    Refuse(Refusal),
    /// The client says good-bye. There is no reply.
    Disconnect,
    /// The peer is out of sync.
    Close,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) errno: Errno,
    pub(super) text: &'static str,
    pub(super) drain: u64,
}

impl Plan {
    /// Bytes of payload that the request holds in memory, coming or going.
    pub(super) fn payload_len(&self) -> usize {
        match self {
            Self::Io(Op::Read { extent }) => {
                usize::try_from(extent.len()).expect("a read is at most the largest payload")
            }
            Self::Write { len, .. } => *len as usize,
            Self::Status { payload, .. } => *payload as usize,
            Self::Io(_) | Self::Refuse(_) | Self::Disconnect | Self::Close => 0,
        }
    }

    /// The same request, `drain` bytes of payload behind it, when the server stops.
    pub(super) fn refused_by_stop(self, drain: u64) -> Self {
        match self {
            Self::Disconnect | Self::Close => self,
            _ => Self::Refuse(Refusal {
                errno: Errno::Shutdown,
                text: "server is shutting down",
                drain,
            }),
        }
    }
}

/// Decides what to do with `request`. Bounds, alignment and capabilities are the port's to check.
pub(super) fn plan(request: &Request, mode: ReplyMode) -> Plan {
    let drain = request.payload_len(mode);
    if drain > DRAIN_MAX {
        return Plan::Close;
    }
    let refuse = |text| {
        Plan::Refuse(Refusal {
            errno: Errno::Inval,
            text,
            drain,
        })
    };
    let Some(command) = Command::from_wire(request.command) else {
        return refuse("unknown command");
    };
    if command == Command::Disconnect {
        return Plan::Disconnect;
    }
    if request.flags & !flags_known(command, mode) != 0 {
        return refuse("flags do not belong to this command");
    }
    let Some(extent) = Extent::checked(request.offset, request.len) else {
        return refuse("offset and length overflow");
    };
    let has = |flag| request.flags & flag != 0;
    let fua = has(cmd_flag::FUA);
    let payload = u32::try_from(request.len)
        .ok()
        .filter(|len| *len <= PAYLOAD_MAX);
    match (command, payload) {
        (Command::Read | Command::Write, None) => refuse("longer than the largest block"),
        (Command::Read, Some(_)) => Plan::Io(Op::Read { extent }),
        (Command::Write, Some(len)) => Plan::Write { len, fua },
        (Command::Flush, _) if request.offset != 0 || request.len != 0 => {
            refuse("a flush has neither offset nor length")
        }
        (Command::Flush, _) => Plan::Io(Op::Flush),
        (Command::Trim, _) => Plan::Io(Op::Discard { extent, fua }),
        (Command::Cache, _) => Plan::Io(Op::Prefetch { extent }),
        (Command::WriteZeroes, _) => Plan::Io(Op::WriteZeroes {
            extent,
            may_unmap: !has(cmd_flag::NO_HOLE),
            fast_only: has(cmd_flag::FAST_ZERO),
            fua,
        }),
        (Command::BlockStatus, _) if mode == ReplyMode::Simple => {
            refuse("block status needs structured replies")
        }
        (Command::BlockStatus, _) => status(request, drain, refuse),
        (Command::Disconnect, _) => Plan::Disconnect,
    }
}

fn status(request: &Request, payload: u64, refuse: impl Fn(&'static str) -> Plan) -> Plan {
    let payload = match u32::try_from(payload) {
        Ok(payload) if payload as usize <= StatusPayload::LEN_MAX => payload,
        _ => return refuse("block status payload is too long"),
    };
    if request.len == 0 {
        return refuse("block status of nothing");
    }
    Plan::Status {
        len: request.len,
        one: request.flags & cmd_flag::REQ_ONE != 0,
        payload,
    }
}

/// Flags that a command may carry. Fua is accepted, and has no meaning, where nothing is written.
const fn flags_known(command: Command, mode: ReplyMode) -> u16 {
    let payload = match mode {
        ReplyMode::Extended => cmd_flag::PAYLOAD_LEN,
        ReplyMode::Simple | ReplyMode::Structured => 0,
    };
    cmd_flag::FUA
        | match command {
            Command::Read => cmd_flag::DF,
            Command::Write => payload,
            Command::WriteZeroes => cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
            Command::BlockStatus => cmd_flag::REQ_ONE | payload,
            Command::Disconnect | Command::Flush | Command::Trim | Command::Cache => 0,
        }
}

/// The protocol's number for an error of the disk.
pub(super) fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::NoSpace => Errno::NoSpace,
        ErrorKind::Invalid => Errno::Inval,
        ErrorKind::Unsupported => Errno::NotSup,
        ErrorKind::ReadOnly => Errno::Perm,
        _ => Errno::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENDED: ReplyMode = ReplyMode::Extended;

    fn request(command: Command, flags: u16, offset: u64, len: u64) -> Request {
        Request {
            flags,
            command: command.to_wire(),
            cookie: 1,
            offset,
            len,
        }
    }

    fn refused(plan: Plan) -> (Errno, u64) {
        match plan {
            Plan::Refuse(refusal) => (refusal.errno, refusal.drain),
            other => panic!("not refused, plan={other:?}"),
        }
    }

    #[test]
    fn flags_become_operations() {
        let extent = Extent::new(512, 1024);
        let zeroes = |flags| {
            plan(
                &request(Command::WriteZeroes, flags, 512, 1024),
                ReplyMode::Simple,
            )
        };
        let op = |may_unmap, fast_only, fua| {
            Plan::Io(Op::WriteZeroes {
                extent,
                may_unmap,
                fast_only,
                fua,
            })
        };
        assert_eq!(zeroes(0), op(true, false, false));
        assert_eq!(zeroes(cmd_flag::NO_HOLE), op(false, false, false));
        assert_eq!(zeroes(cmd_flag::FAST_ZERO), op(true, true, false));
        assert_eq!(zeroes(cmd_flag::FUA), op(true, false, true));
        let trim = request(Command::Trim, cmd_flag::FUA, 512, 1024);
        let fua = true;
        assert_eq!(
            plan(&trim, ReplyMode::Simple),
            Plan::Io(Op::Discard { extent, fua })
        );
    }

    #[test]
    fn payload_at_the_limit_is_taken_and_beyond_is_drained() {
        let max = u64::from(PAYLOAD_MAX);
        let write = |len| plan(&request(Command::Write, 0, 0, len), ReplyMode::Simple);
        assert!(matches!(write(max), Plan::Write { .. }));
        assert_eq!(refused(write(max + 1)), (Errno::Inval, max + 1));
        assert_eq!(refused(write(DRAIN_MAX)), (Errno::Inval, DRAIN_MAX));
        assert_eq!(write(DRAIN_MAX + 1), Plan::Close);
        let read = |len| plan(&request(Command::Read, 0, 0, len), ReplyMode::Simple);
        assert!(matches!(read(max), Plan::Io(_)));
        assert_eq!(refused(read(max + 1)), (Errno::Inval, 0));
    }

    #[test]
    fn wrong_requests_keep_the_payload_length() {
        let mut odd = request(Command::Read, cmd_flag::PAYLOAD_LEN, 0, 4096);
        assert_eq!(refused(plan(&odd, EXTENDED)), (Errno::Inval, 4096));
        odd.command = 999;
        assert_eq!(refused(plan(&odd, EXTENDED)), (Errno::Inval, 4096));
        odd.flags = 0;
        assert_eq!(refused(plan(&odd, EXTENDED)), (Errno::Inval, 0));
        let overflow = request(Command::Write, 0, u64::MAX, 512);
        assert_eq!(refused(plan(&overflow, EXTENDED)), (Errno::Inval, 512));
        let flush = request(Command::Flush, 0, 0, 1);
        assert_eq!(refused(plan(&flush, EXTENDED)), (Errno::Inval, 0));
    }

    #[test]
    fn status_needs_structure_and_a_length() {
        let status = |mode, flags, len| plan(&request(Command::BlockStatus, flags, 0, len), mode);
        assert_eq!(
            refused(status(ReplyMode::Simple, 0, 512)),
            (Errno::Inval, 0)
        );
        assert_eq!(
            refused(status(ReplyMode::Structured, 0, 0)),
            (Errno::Inval, 0)
        );
        assert!(matches!(
            status(ReplyMode::Structured, cmd_flag::REQ_ONE, 512),
            Plan::Status {
                one: true,
                payload: 0,
                ..
            }
        ));
        assert!(matches!(
            status(EXTENDED, cmd_flag::PAYLOAD_LEN, 12),
            Plan::Status { payload: 12, .. }
        ));
        let long = StatusPayload::LEN_MAX as u64 + 1;
        assert_eq!(
            refused(status(EXTENDED, cmd_flag::PAYLOAD_LEN, long)),
            (Errno::Inval, long)
        );
    }

    #[test]
    fn errors_map_to_the_protocols_numbers() {
        for (kind, want) in [
            (ErrorKind::NoSpace, Errno::NoSpace),
            (ErrorKind::Invalid, Errno::Inval),
            (ErrorKind::Unsupported, Errno::NotSup),
            (ErrorKind::ReadOnly, Errno::Perm),
            (ErrorKind::TimedOut, Errno::Io),
            (ErrorKind::Gone, Errno::Io),
            (ErrorKind::FilterFault, Errno::Io),
        ] {
            assert_eq!(errno(&Error::new(kind, "x")), want);
        }
    }
}
