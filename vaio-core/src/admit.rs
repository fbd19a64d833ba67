//! Validation of an IO at the edge, once. Pure.

use crate::{DeviceInfo, Error, ErrorKind, Extent, Op, OpKind, Reply, Result, Support};

/// What becomes of an IO that came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It goes down the chain.
    Go(Extent),
    /// It is answered at once.
    Answer(Reply),
}

/// Checks what a guest asks against what the disk offers.
pub(crate) fn check(info: &DeviceInfo, op: &Op) -> Result<Admission> {
    let kind = op.kind();
    let extent = match op {
        Op::Write { offset, data, .. } => Extent::checked(*offset, data.len() as u64),
        _ => Some(op.extent()),
    };
    let Some(extent) = extent else {
        return Err(Error::invalid("write overflows").with_op(kind));
    };
    let refuse = |kind_of: ErrorKind, text: String| {
        Err(Error::new(kind_of, text).with_op(kind).with_extent(extent))
    };
    if info.caps.support(kind) == Support::None {
        return if info.caps.read_only {
            refuse(ErrorKind::ReadOnly, "the disk is read-only".into())
        } else {
            refuse(
                ErrorKind::Unsupported,
                "the disk does not do this operation".into(),
            )
        };
    }
    if kind == OpKind::Flush {
        return Ok(Admission::Go(extent));
    }
    if extent.end() > info.capacity {
        let text = format!(
            "request is past the end of the disk, capacity={}",
            info.capacity
        );
        return refuse(ErrorKind::Invalid, text);
    }
    if !extent.is_aligned(info.logical_block) {
        let text = format!(
            "request is not whole blocks, logical_block={}",
            info.logical_block
        );
        return refuse(ErrorKind::Invalid, text);
    }
    if matches!(kind, OpKind::Read | OpKind::Write) && extent.len() > info.transfer_max.into() {
        let text = format!("request is too large, transfer_max={}", info.transfer_max);
        return refuse(ErrorKind::Invalid, text);
    }
    if extent.is_empty() {
        return Ok(Admission::Answer(match kind {
            OpKind::Read => Reply::Data(bytes::Bytes::new()),
            _ => Reply::Done,
        }));
    }
    Ok(Admission::Go(extent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Io, zeroes};

    fn kind_of(info: &DeviceInfo, io: &Io) -> Option<ErrorKind> {
        check(info, &io.op).err().map(|error| error.kind())
    }

    #[test]
    fn bad_requests_are_refused_and_empty_ones_answered() {
        let info = DeviceInfo::new(1 << 20, 4096);
        for io in [
            Io::read(Extent::new(1 << 20, 4096)),
            Io::read(Extent::new(512, 4096)),
            Io::read(Extent::new(0, 512)),
            Io::write(u64::MAX, zeroes(4096)),
        ] {
            assert_eq!(kind_of(&info, &io), Some(ErrorKind::Invalid), "{io:?}");
        }
        let empty = Io::read(Extent::new(0, 0));
        assert_eq!(
            check(&info, &empty.op).unwrap(),
            Admission::Answer(Reply::Data(zeroes(0)))
        );
        let discard = Io::discard(Extent::new(0, 4096));
        assert_eq!(kind_of(&info, &discard), Some(ErrorKind::Unsupported));
        let read_only = info.with_caps(|caps| caps.read_only = true);
        let write = Io::write(0, zeroes(4096));
        assert_eq!(kind_of(&read_only, &write), Some(ErrorKind::ReadOnly));
    }
}
