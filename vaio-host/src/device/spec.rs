//! [`Spec`]: what a user writes to name a device. A pure parser, and [`open_spec`].
//!
//! ```text
//! PATH                                    file or block device
//! ram:SIZE   null:SIZE                    memory; nothing at all
//! nbd://HOST[:PORT]/EXPORT                NBD over TCP (nbds: with TLS)
//! nbd+unix:///EXPORT?socket=PATH          NBD over a Unix socket (nbds+unix: with TLS)
//! ```
//! SIZE takes K, M, G or T, powers of 1024. In URIs, `%XX` is a byte. A path that looks like one
//! of the others is written `./PATH`. TLS takes `tls-certificates=DIR` (`ca-cert.pem`, and
//! `client-cert.pem` with `client-key.pem` where the server asks for them).

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
    str::FromStr,
    sync::Arc,
};

use vaio_core::{BlockDevice, Error, NullDisk, RamDisk, Result, Rt};

use super::{FileDevice, FileOptions, NbdDevice};

/// The port of NBD.
pub const NBD_PORT: u16 = 10809;

/// A device as a user names it. Shown, it parses to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Spec {
    /// A file or block device.
    File(PathBuf),
    /// A disk in memory of so many bytes.
    Ram(u64),
    /// A disk of so many bytes that swallows writes and reads as zeroes.
    Null(u64),
    /// An NBD export.
    Nbd(NbdUri),
}

/// Where an NBD export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// Where the server listens.
    pub address: NbdAddress,
    /// Name of the export; empty for the server's default.
    pub export: String,
    /// Whether the connection must be encrypted.
    pub tls: bool,
    /// Directory of the certificates; `None`: the system's authorities are not used, so TLS
    /// needs it.
    pub tls_certificates: Option<PathBuf>,
}

/// Where an NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// Host name or address, without brackets, and port.
    Tcp(String, u16),
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(size) = text.strip_prefix("ram:") {
            return parse_disk_size(size).map(Self::Ram);
        }
        if let Some(size) = text.strip_prefix("null:") {
            return parse_disk_size(size).map(Self::Null);
        }
        if text.is_empty() {
            return Err(Error::config(
                "a device spec is empty: name a path or a URI",
            ));
        }
        match text.split_once("://") {
            Some((scheme, rest)) if scheme.starts_with("nbd") => {
                parse_nbd(scheme, rest, text).map(Self::Nbd)
            }
            // A path may hold "://"; a URI of a scheme that we do not know is more likely.
            Some((scheme, _))
                if scheme
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                    && !scheme.is_empty()
                    && !scheme.starts_with('.') =>
            {
                Err(bad(
                    "unknown scheme: use nbd, nbds, nbd+unix, nbds+unix or ./PATH",
                    text,
                ))
            }
            _ => Ok(Self::File(text.into())),
        }
    }
}

fn bad(what: &str, text: &str) -> Error {
    Error::config(format!("{what}, spec={text}"))
}

/// A size in bytes with an optional suffix K, M, G or T (powers of 1024).
///
/// # Errors
/// [`ErrorKind::Config`](vaio_core::ErrorKind::Config) for what is no such number or is too large.
pub fn parse_size(text: &str) -> Result<u64> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number
        .then(|| digits.parse::<u64>().ok())
        .flatten()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| {
            Error::config(format!(
                "not a size: use a number with K, M, G or T after it, size={text}"
            ))
        })
}

fn parse_disk_size(text: &str) -> Result<u64> {
    let size = parse_size(text)?;
    if size == 0 || size % 512 != 0 || size > vaio_core::DeviceInfo::CAPACITY_MAX {
        return Err(Error::config(format!(
            "a disk's size is a multiple of 512 bytes from 512 to 8 EiB, size={text}"
        )));
    }
    Ok(size)
}

fn parse_nbd(scheme: &str, rest: &str, text: &str) -> Result<NbdUri> {
    let (tls, is_unix) = match scheme {
        "nbd" => (false, false),
        "nbds" => (true, false),
        "nbd+unix" => (false, true),
        "nbds+unix" => (true, true),
        _ => {
            return Err(bad(
                "unknown scheme: use nbd, nbds, nbd+unix or nbds+unix",
                text,
            ));
        }
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    let (mut socket, mut tls_certificates) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value, text)?;
        match key {
            "socket" if is_unix && !value.is_empty() => socket = Some(PathBuf::from(value)),
            "tls-certificates" if tls => tls_certificates = Some(PathBuf::from(value)),
            _ => return Err(bad("unknown parameter in an NBD URI", text)),
        }
    }
    let address = if is_unix {
        if !authority.is_empty() {
            return Err(bad(
                "a Unix socket has no host: write nbd+unix:///EXPORT?socket=PATH",
                text,
            ));
        }
        NbdAddress::Unix(socket.ok_or_else(|| bad("add ?socket=PATH to the NBD URI", text))?)
    } else {
        parse_authority(authority, text)?
    };
    Ok(NbdUri {
        address,
        export: decode(export, text)?,
        tls,
        tls_certificates,
    })
}

fn parse_authority(authority: &str, text: &str) -> Result<NbdAddress> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest
            .split_once(']')
            .ok_or_else(|| bad("the address has no closing bracket", text))?,
        None => match authority.find(':') {
            Some(at) => authority.split_at(at),
            None => (authority, ""),
        },
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => NBD_PORT,
        Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => number
            .parse()
            .map_err(|_| bad("not a port from 0 to 65535", text))?,
        _ => return Err(bad("not a port from 0 to 65535", text)),
    };
    if host.is_empty() || host.contains(['@', '[', ']', '%']) {
        return Err(bad("an NBD URI names a host: nbd://HOST/EXPORT", text));
    }
    Ok(NbdAddress::Tcp(host.to_owned(), port))
}

/// Turns `%XX` into bytes.
fn decode(text: &str, whole: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        match (digit(bytes.next()), digit(bytes.next())) {
            (Some(high), Some(low)) => {
                out.push(u8::try_from(high << 4 | low).expect("two hex digits"));
            }
            _ => return Err(bad("%XX needs two hex digits", whole)),
        }
    }
    String::from_utf8(out)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or_else(|| bad("not text", whole))
}

fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(byte.into());
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ram(size) => write!(f, "ram:{size}"),
            Self::Null(size) => write!(f, "null:{size}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Nbd(uri) => write!(f, "{uri}"),
        }
    }
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.tls { "s" } else { "" };
        let export = encode(&self.export);
        let mut separator = '?';
        match &self.address {
            NbdAddress::Unix(socket) => {
                let socket = encode(&socket.to_string_lossy());
                write!(f, "nbd{s}+unix:///{export}?socket={socket}")?;
                separator = '&';
            }
            NbdAddress::Tcp(host, port) if host.contains(':') => {
                write!(f, "nbd{s}://[{host}]:{port}/{export}")?;
            }
            NbdAddress::Tcp(host, port) => write!(f, "nbd{s}://{host}:{port}/{export}")?,
        }
        if let Some(directory) = &self.tls_certificates {
            let directory = encode(&directory.to_string_lossy());
            write!(f, "{separator}tls-certificates={directory}")?;
        }
        Ok(())
    }
}

/// Opens what `spec` names. `options` are for files; of them, `read_only` is for exports too.
///
/// Call it on the runtime that will do the IO. Takes no lock: see
/// [`ImageLock`](super::ImageLock).
///
/// # Errors
/// As [`FileDevice::open`] and [`NbdDevice::connect`].
pub async fn open_spec(
    spec: &Spec,
    options: &FileOptions,
    rt: &Rt,
) -> Result<Arc<dyn BlockDevice>> {
    Ok(match spec {
        Spec::File(path) => Arc::new(FileDevice::open(path, options, rt)?),
        Spec::Ram(size) => Arc::new(RamDisk::new(*size)),
        Spec::Null(size) => Arc::new(NullDisk::new(*size)),
        Spec::Nbd(uri) => Arc::new(NbdDevice::connect(uri, options.read_only, rt).await?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Spec {
        text.parse()
            .unwrap_or_else(|error: Error| panic!("{}", error.to_line()))
    }

    #[test]
    fn documented_forms_parse() {
        assert_eq!(parse("disk.img"), Spec::File("disk.img".into()));
        assert_eq!(parse("./ram:1G"), Spec::File("./ram:1G".into()));
        assert_eq!(parse("ram:16M"), Spec::Ram(16 << 20));
        assert_eq!(parse("null:2T"), Spec::Null(2 << 40));
        let Spec::Nbd(uri) = parse("nbd+unix:///a%20b?socket=/run/x.sock") else {
            panic!("an NBD URI");
        };
        assert_eq!(uri.export, "a b");
        assert_eq!(uri.address, NbdAddress::Unix("/run/x.sock".into()));
        let Spec::Nbd(uri) = parse("nbds://[::1]:99/disk?tls-certificates=/etc/pki") else {
            panic!("an NBD URI");
        };
        assert_eq!(uri.address, NbdAddress::Tcp("::1".into(), 99));
        assert!(uri.tls && uri.tls_certificates.is_some());
        let Spec::Nbd(uri) = parse("nbd://host") else {
            panic!("an NBD URI");
        };
        assert_eq!(uri.address, NbdAddress::Tcp("host".into(), NBD_PORT));
    }

    #[test]
    fn bad_forms_are_config_errors() {
        for text in [
            "",
            "ram:",
            "ram:0",
            "ram:1",
            "ram:-1K",
            "ram:1X",
            "null:99999999999T",
            "ram:8388608T",
            "nbd+unix:///x",
            "nbd+unix://host/x?socket=/s",
            "nbd:///x",
            "nbd://h:99999/x",
            "nbd://h:/x",
            "nbd://[::1/x",
            "nbdx://h/x",
            "http://h/x",
            "nbd://h/%4",
            "nbd://h/%zz",
            "nbd://h/%00",
            "nbd://h/%ff",
            "nbd://h/x?socket=/s",
            "nbd://h/x?tls-certificates=/d",
            "nbd://user@h/x",
            "ram:+5K",
            "nbd://h:+80/x",
        ] {
            let error = text.parse::<Spec>().expect_err(text);
            assert_eq!(error.kind(), vaio_core::ErrorKind::Config, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_without_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<Spec>();
        }

        #[test]
        fn uri_like_text_parses_or_fails_without_panic(text in "nbds?(\\+unix)?://[a-z:/%?&=\\[\\]0-9]{0,30}") {
            if let Ok(spec) = text.parse::<Spec>() {
                prop_assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
            }
        }

        #[test]
        fn shown_uri_parses_to_itself(
            export in "[^\\x00]{0,12}", socket in "[^\\x00]{1,12}", tls in any::<bool>(), port in 0u16..,
            is_unix in any::<bool>(),
        ) {
            let address = if is_unix { NbdAddress::Unix(socket.into()) }
                else { NbdAddress::Tcp("fe80::1".into(), port) };
            let tls_certificates = tls.then(|| "/etc/a b&c".into());
            let spec = Spec::Nbd(NbdUri { address, export, tls, tls_certificates });
            prop_assert_eq!(spec.to_string().parse::<Spec>().unwrap(), spec);
        }

        #[test]
        fn size_with_suffix_is_a_power_of_1024(number in 1u64..1 << 20, at in 0usize..4) {
            let text = format!("{number}{}", ["K", "M", "G", "T"][at]);
            prop_assert_eq!(parse_size(&text).unwrap(), number << (10 * (at + 1)));
        }
    }
}
