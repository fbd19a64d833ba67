//! [`Site`]: where in a filter's own code an IO of a lower device comes from.
//!
//! A trait object's method cannot see its caller, so the kit looks at the stack when the device is
//! first polled: the frames between the device and the simulator's executor are the futures that
//! wait for the IO. Those of core, of the language's own crates and of the kit are left out; what
//! remains is the filter's. An address is resolved once: after that a look costs the unwinding
//! alone.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use backtrace::{Frame, Symbol, trace};
use vaio_core::OpKind;

/// Frames of a stack that are looked at, at most: an executor is not deeper.
const FRAMES_MAX: usize = 400;

/// Functions that tell one call site from another: the one that does the IO and its callers. A
/// helper that flushes for three callers is three sites.
const CALLERS: usize = 3;

/// Crates whose frames are never the filter's.
const PLUMBING: &[&str] = &[
    "alloc",
    "async_trait",
    "backtrace",
    "core",
    "futures",
    "futures_channel",
    "futures_core",
    "futures_executor",
    "futures_util",
    "std",
    "tokio",
    "vaio_core",
];

/// A place in a filter's code where an IO is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Path from the crate's folder on, such as `src/log.rs`; empty without debug info.
    pub file: String,
    /// From 1; 0 without debug info.
    pub line: u32,
    /// From 1; 0 without debug info.
    pub column: u32,
    /// Type and name, such as `Log::commit`.
    pub function: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_empty() {
            return write!(f, "{}", self.function);
        }
        write!(
            f,
            "{}:{}:{} ({})",
            self.file, self.line, self.column, self.function
        )
    }
}

/// A call site: what is done on which device, by which function, for which callers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// The function that waits for the device, then its callers within the filter; never empty.
    pub path: Vec<Place>,
    /// The lower device.
    pub device: Arc<str>,
    /// The operation.
    pub op: OpKind,
}

impl Site {
    /// The place itself.
    pub fn place(&self) -> &Place {
        &self.path[0]
    }

    /// Without line numbers, innermost first: `src/log.rs:commit < src/cache.rs:flush`. What
    /// explanations are matched with: it survives most edits.
    pub fn label(&self) -> String {
        let name = |place: &Place| {
            let name = place.function.rsplit("::").next().unwrap_or_default();
            format!("{}:{name}", place.file)
        };
        let names: Vec<_> = self.path.iter().map(name).collect();
        names.join(" < ")
    }
}

/// `flush of cache at src/log.rs:10:5 (Log::commit), called by src/cache.rs:20:9 (Cache::flush)`.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} at {}", self.op, self.device, self.path[0])?;
        for (number, caller) in self.path[1..].iter().enumerate() {
            let by = if number == 0 { ", called by" } else { " <" };
            write!(f, "{by} {caller}")?;
        }
        Ok(())
    }
}

/// Number of a site, in the order in which sites were first seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SiteId(pub(super) usize);

/// What an address in the code is.
#[derive(Clone, Debug)]
enum Code {
    Plumbing,
    /// The simulator or what drives it: no filter is beyond.
    End,
    /// One address may stand for several functions that the compiler made one; innermost first.
    Filter(Arc<[Place]>),
}

/// All sites seen so far. Shared by the runs of an audit.
#[derive(Debug, Default)]
pub(super) struct Sites(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    // Looked up, never iterated.
    code: HashMap<usize, Code>,
    by_stack: HashMap<(Arc<str>, OpKind, Vec<usize>), SiteId>,
    by_site: BTreeMap<Site, SiteId>,
    all: Vec<Site>,
    has_lines: bool,
}

impl Sites {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The site that waits for the IO which is being polled now. `None`: no filter's frame is on
    /// the stack; it is IO of the framework.
    pub(super) fn here(&self, device: &Arc<str>, op: OpKind) -> Option<SiteId> {
        let known = &mut *self.lock();
        let mut stack = Vec::with_capacity(CALLERS);
        let mut path: Vec<Place> = Vec::new();
        let mut left = FRAMES_MAX;
        trace(|frame| {
            left -= 1;
            let address = frame.ip() as usize;
            match known.code_of(address, frame) {
                Code::Plumbing => {}
                Code::End => return false,
                Code::Filter(places) => {
                    stack.push(address);
                    for place in places.iter() {
                        // Blocks and closures of one function, one in another, are one place.
                        let is_same = path
                            .last()
                            .is_some_and(|last| last.function == place.function);
                        if !is_same && path.len() < CALLERS {
                            path.push(place.clone());
                        }
                    }
                }
            }
            left > 0 && path.len() < CALLERS
        });
        if path.is_empty() {
            return None;
        }
        let key = (Arc::clone(device), op, stack);
        if let Some(id) = known.by_stack.get(&key) {
            return Some(*id);
        }
        let site = Site {
            path,
            device: Arc::clone(device),
            op,
        };
        let next = SiteId(known.all.len());
        let id = *known.by_site.entry(site.clone()).or_insert(next);
        if id == next {
            known.all.push(site);
        }
        known.by_stack.insert(key, id);
        Some(id)
    }

    pub(super) fn all(&self) -> Vec<Site> {
        self.lock().all.clone()
    }

    /// Whether any filter's frame has a file and a line.
    pub(super) fn has_lines(&self) -> bool {
        self.lock().has_lines
    }
}

impl Known {
    fn code_of(&mut self, address: usize, frame: &Frame) -> Code {
        if let Some(code) = self.code.get(&address) {
            return code.clone();
        }
        let code = resolve(frame);
        if let Code::Filter(places) = &code {
            self.has_lines |= places.iter().any(|place| place.line > 0);
        }
        self.code.insert(address, code.clone());
        code
    }
}

fn resolve(frame: &Frame) -> Code {
    let mut places = Vec::new();
    let mut is_end = false;
    backtrace::resolve_frame(frame, |symbol| {
        let name = symbol.name().map(|name| format!("{name:#}"));
        let name = name.unwrap_or_default();
        let file = symbol.filename().map(|path| path.to_string_lossy());
        // With line tables alone a name has no path: then the file tells.
        let kind = match &file {
            Some(file) if !name.contains("::") => kind_of_file(file),
            _ => kind_of(&name),
        };
        match kind {
            Kind::Filter => places.push(place_of(symbol, file.as_deref(), &name)),
            Kind::End => is_end = true,
            Kind::Plumbing => {}
        }
    });
    match (places.is_empty(), is_end) {
        (false, _) => Code::Filter(places.into()),
        (true, true) => Code::End,
        (true, false) => Code::Plumbing,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Filter,
    Plumbing,
    End,
}

/// Whose a function is, by its name.
fn kind_of(function: &str) -> Kind {
    let mut path = type_path(function);
    if !path.contains("::") {
        // A generic parameter: the trait tells.
        path = match function.split_once(" as ") {
            Some((_, of)) => of,
            None => return Kind::Plumbing,
        };
    }
    let mut parts = path.split("::");
    let (root, module) = (parts.next().unwrap_or_default(), parts.next());
    match root {
        "vaio_testkit" => kind_of_module(module),
        root if PLUMBING.contains(&root) => Kind::Plumbing,
        _ => Kind::Filter,
    }
}

/// The path that a function's name begins with: of its type, where it is a method of a trait.
fn type_path(function: &str) -> &str {
    let mut path = function.trim_start_matches(['<', '&', '*', '(']);
    for word in ["mut ", "const ", "dyn "] {
        path = path.strip_prefix(word).unwrap_or(path);
    }
    let end = path.find([' ', '<', '>', ',']).unwrap_or(path.len());
    &path[..end]
}

/// Whose a function is, by the file that it is in.
fn kind_of_file(file: &str) -> Kind {
    let is_foreign = file.contains("/rustc/") || file.contains("/registry/src/");
    if let Some((_, inside)) = file.split_once(KIT_FOLDER) {
        return kind_of_module(inside.split(['/', '.']).next());
    }
    let is_core = |part: &str| part == "vaio-core" || part.starts_with("vaio-core-");
    if is_foreign || file.split('/').any(is_core) {
        return Kind::Plumbing;
    }
    Kind::Filter
}

/// Whose a module of this crate is.
fn kind_of_module(module: Option<&str>) -> Kind {
    match module {
        Some("twins") => Kind::Filter,
        Some("sim" | "explore" | "conformance") => Kind::End,
        _ => Kind::Plumbing,
    }
}

/// The folder of this crate's source, as the compiler knows it.
const KIT_FOLDER: &str = {
    let (folder, _) = file!().split_at(file!().len() - "audit/site.rs".len());
    folder
};

fn place_of(symbol: &Symbol, path: Option<&str>, name: &str) -> Place {
    let (line, column) = match path {
        Some(_) => (symbol.lineno().unwrap_or(0), symbol.colno().unwrap_or(0)),
        None => (0, 0),
    };
    let named = || {
        let source = std::fs::read_to_string(path?).ok()?;
        function_around(&source, line).map(str::to_owned)
    };
    let function = match short(name) {
        // Line tables do not name the function that an async block is in; the source does.
        short if short.is_empty() => named().unwrap_or_else(|| "?".into()),
        short => short,
    };
    Place {
        file: path
            .map(|path| in_crate(path).to_owned())
            .unwrap_or_default(),
        line,
        column,
        function,
    }
}

/// The function that begins last before a line (from 1).
fn function_around(source: &str, line: u32) -> Option<&str> {
    let line = usize::try_from(line).ok()?;
    let before: Vec<_> = source.lines().take(line).collect();
    before.into_iter().rev().find_map(|text| {
        let (qualifiers, rest) = text.trim_start().split_once("fn ")?;
        let is_item = qualifiers.split_whitespace().all(|word| {
            word.starts_with("pub")
                || ["async", "const", concat!("un", "safe"), "in"].contains(&word)
        });
        let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
        (is_item && end > 0).then_some(&rest[..end])
    })
}

/// The path from the crate's folder on.
fn in_crate(path: &str) -> &str {
    let folders = ["src/", "tests/", "examples/", "benches/"];
    let starts = folders.iter().filter_map(|folder| {
        if path.starts_with(folder) {
            return Some(0);
        }
        path.rfind(&format!("/{folder}")).map(|at| at + 1)
    });
    &path[starts.max().unwrap_or(0)..]
}

/// Type and name of a function, without modules, generics and closures.
fn short(name: &str) -> String {
    let (of_type, rest) = match name.strip_prefix('<').and_then(split_type) {
        Some((_, rest)) => (last_part(type_path(name)), rest),
        None => ("", name),
    };
    let rest = without_generics(rest);
    let parts: Vec<_> = rest
        .split("::")
        .filter(|part| !part.is_empty() && !part.starts_with('{'))
        .collect();
    let function = parts.last().copied().unwrap_or_default();
    let owner = match parts.len() {
        _ if !of_type.is_empty() => of_type,
        0 | 1 => "",
        len => parts[len - 2],
    };
    if owner.starts_with(char::is_uppercase) {
        format!("{owner}::{function}")
    } else {
        function.to_owned()
    }
}

/// What is before and after the bracket that closes one already open.
fn split_type(text: &str) -> Option<(&str, &str)> {
    let mut depth = 1;
    for (at, letter) in text.char_indices() {
        match letter {
            '<' => depth += 1,
            '>' if !text[..at].ends_with('-') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&text[..at], &text[at + 1..]));
        }
    }
    None
}

fn last_part(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

fn without_generics(name: &str) -> String {
    let mut depth = 0;
    name.chars()
        .filter(|letter| {
            match letter {
                '<' => depth += 1,
                '>' => {
                    depth -= 1;
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_names_are_short_in_both_manglings() {
        for (long, expected) in [
            ("my::log::Log::commit::{{closure}}", "Log::commit"),
            ("<my::log::Log>::commit::{closure#0}", "Log::commit"),
            (
                "<my::log::Log<K> as vaio_core::filter::Filter>::io::{{closure}}",
                "Log::io",
            ),
            ("my::recover::replay::{{closure}}::{{closure}}", "replay"),
            ("my::log::Log<K>::commit", "Log::commit"),
        ] {
            assert_eq!(short(long), expected, "{long}");
        }
    }

    #[test]
    fn frames_are_told_apart_by_whose_they_are() {
        for (name, expected) in [
            ("my::log::Log::commit::{{closure}}", Kind::Filter),
            (
                "<my::Log as vaio_core::filter::Filter>::io::{{closure}}",
                Kind::Filter,
            ),
            ("<vaio_testkit::twins::mirror::Mirror>::flush", Kind::Filter),
            ("vaio_testkit::sim::executor::poll", Kind::End),
            (
                "vaio_testkit::audit::mutant::Tapped::submit",
                Kind::Plumbing,
            ),
            (
                "<core::pin::Pin<P> as core::future::future::Future>::poll",
                Kind::Plumbing,
            ),
            (
                "<F as futures_core::future::TryFuture>::try_poll",
                Kind::Plumbing,
            ),
            (
                "<&mut F as core::future::future::Future>::poll",
                Kind::Plumbing,
            ),
            (
                "vaio_core::device_ext::BlockDeviceExt::flush::{{closure}}",
                Kind::Plumbing,
            ),
            ("main", Kind::Plumbing),
        ] {
            assert_eq!(kind_of(name), expected, "{name}");
        }
    }

    #[test]
    fn files_are_told_apart_by_whose_they_are() {
        let kit = format!("/home/me/{KIT_FOLDER}");
        for (file, expected) in [
            ("/home/me/filter/src/log.rs", Kind::Filter),
            (
                "/rustc/0123/library/core/src/future/poll_fn.rs",
                Kind::Plumbing,
            ),
            (
                "/home/me/registry/src/index/futures-util-0.3/src/lib.rs",
                Kind::Plumbing,
            ),
            ("/home/me/vaio-core/src/chain/next.rs", Kind::Plumbing),
            (&format!("{kit}twins/observer.rs"), Kind::Filter),
            (&format!("{kit}sim/executor.rs"), Kind::End),
            (&format!("{kit}disk/handle.rs"), Kind::Plumbing),
        ] {
            assert_eq!(kind_of_file(file), expected, "{file}");
        }
    }

    #[test]
    fn function_around_a_line_is_the_one_that_begins_before_it() {
        let source = "fn one() {\n}\n    pub(super) async fn two(\n  &self) {\n  let fn_x = 1;\n";
        assert_eq!(function_around(source, 5), Some("two"));
        assert_eq!(function_around(source, 2), Some("one"));
        assert_eq!(function_around("let x = 1;", 1), None);
    }

    #[test]
    fn paths_begin_at_the_crates_folder() {
        assert_eq!(in_crate("/home/me/src/filter/src/log.rs"), "src/log.rs");
        assert_eq!(in_crate("filter/tests/audit.rs"), "tests/audit.rs");
        assert_eq!(in_crate("src/log.rs"), "src/log.rs");
        assert_eq!(in_crate("log.rs"), "log.rs");
    }
}
