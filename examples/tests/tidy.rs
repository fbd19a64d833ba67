//! The repository checked like code: what `docs/adr` and `CONTRIBUTING.md` promise about its shape holds here.
//!
//! Each rule is a pure function from files to complaints, so that `rules_bite_on_bad_input` can show that it bites.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file before its `#[cfg(test)]` module.
const LINES_MAX: usize = 500;

/// Modules of vaio-core that filter vendors compile against.
const VENDOR_SIDE: [&str; 22] = [
    "allocation",
    "descriptor",
    "device",
    "device_ext",
    "dirty",
    "error",
    "event",
    "extent",
    "filter",
    "geometry",
    "io",
    "lifecycle",
    "manifest",
    "policy",
    "pool",
    "ram_disk",
    "registry",
    "runtime",
    "settings",
    "sidecar",
    "state",
    "sync",
];

/// Modules of vaio-core that run a disk, and what they export: the vendors' side never imports them.
const HOST_SIDE: [&str; 8] = [
    "chain",
    "port",
    "gate",
    "disk",
    "Chain",
    "Port",
    "Disk",
    "DiskBuilder",
];

/// The files that ship where the keyword that `unsafe_code = "deny"` is about may appear.
const URING: &str = "vaio-host/src/device/uring.rs";
const WATCHED: &str = "vaio-host/src/watched.rs";

/// And those that do not: a bench that counts allocations has an allocator of its own.
const COUNTING: [&str; 2] = [
    "vaio-core/benches/dispatch.rs",
    "vaio-cache/benches/rig/counting.rs",
];

/// Package, what it may depend on, and what its tests may use in addition.
const LAYERS: [(&str, &[&str], &[&str]); 5] = [
    ("vaio-core", &[], &["vaio-testkit"]),
    ("vaio-cache", &["vaio-core"], &["vaio-testkit"]),
    ("vaio-replicate", &["vaio-core"], &["vaio-testkit"]),
    // The simulated disk behaves as a real file does: its test opens one.
    ("vaio-testkit", &["vaio-core"], &["vaio-host"]),
    (
        "vaio-host",
        &["vaio-core", "vaio-cache", "vaio-replicate"],
        &["vaio-testkit"],
    ),
];

/// A file of the repository: path from its top, and text.
struct File {
    path: String,
    text: String,
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("examples/ has a parent")
        .to_path_buf()
}

/// All files below the top with one of these endings, without build output and hidden folders.
fn files(endings: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    let mut folders = vec![top()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("readable folder") {
            let path = entry.expect("readable entry").path();
            let name = path
                .file_name()
                .expect("has a name")
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let text = fs::read_to_string(&path).expect("UTF-8 text");
                let path = path
                    .strip_prefix(top())
                    .expect("below the top")
                    .display()
                    .to_string();
                found.push(File { path, text });
            }
        }
    }
    assert!(!found.is_empty(), "no file ends with {endings:?}");
    found
}

/// The lines of a file that ship: before its test module.
fn shipped(file: &File) -> impl Iterator<Item = (usize, &str)> {
    let lines = file
        .text
        .lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line));
    lines.take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
}

fn is_test(file: &File) -> bool {
    file.path.contains("/tests/") || file.path.ends_with("/tests.rs")
}

/// A line without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// Whether `word` stands in `line` with nothing that belongs to a name on either side.
fn has_word(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(part_of_name) && !line[at + word.len()..].starts_with(part_of_name)
    })
}

fn too_long(file: &File) -> Option<String> {
    let lines = shipped(file).count();
    (lines > LINES_MAX && !is_test(file)).then(|| format!("{}: {lines} lines", file.path))
}

fn forbidden_words(file: &File) -> Vec<String> {
    let mut bad = Vec::new();
    for (at, line) in shipped(file).map(|(at, line)| (at, code(line))) {
        let macros = [
            concat!("to", "do!"),
            concat!("unimple", "mented!"),
            concat!("db", "g!"),
        ];
        if macros.iter().any(|word| line.contains(word)) {
            bad.push(format!("{}:{at}: {}", file.path, line.trim()));
        }
        let may = [URING, WATCHED].contains(&file.path.as_str())
            || COUNTING.contains(&file.path.as_str());
        if has_word(line, concat!("un", "safe")) && !may {
            bad.push(format!("{}:{at}: {}", file.path, line.trim()));
        }
    }
    bad
}

/// The paths that a file imports from its own crate: the text of each `use crate::...;`, groups and all.
fn imports(file: &File) -> Vec<String> {
    let text: Vec<_> = shipped(file).map(|(_, line)| code(line)).collect();
    let text = text.join("\n");
    let statements = text
        .split("use crate::")
        .skip(1)
        .filter_map(|rest| rest.split(';').next());
    statements
        .map(|statement| statement.split_whitespace().collect())
        .collect()
}

/// A file of vaio-core that vendors compile against, which imports a module of the host's side.
fn upward_import(file: &File) -> Vec<String> {
    let Some(name) = file.path.strip_prefix("vaio-core/src/") else {
        return Vec::new();
    };
    let module = name.split(['/', '.']).next().unwrap_or(name);
    if !VENDOR_SIDE.contains(&module) {
        return Vec::new();
    }
    let upward = |path: &String| HOST_SIDE.iter().any(|host| has_word(path, host));
    imports(file)
        .iter()
        .filter(|path| upward(path))
        .map(|path| format!("{}: use crate::{path}", file.path))
        .collect()
}

/// The names in a section of a Cargo.toml.
fn dependencies<'a>(manifest: &'a str, section: &str) -> Vec<&'a str> {
    let lines = manifest
        .lines()
        .skip_while(|line| line.trim() != section)
        .skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', '=', ' ']).next());
    names
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .collect()
}

fn layering(package: &str, manifest: &str) -> Vec<String> {
    let Some((_, below, in_tests)) = LAYERS.iter().find(|(name, ..)| *name == package) else {
        return Vec::new();
    };
    let mut bad = Vec::new();
    for name in dependencies(manifest, "[dependencies]") {
        if name.starts_with("vaio-") && !below.contains(&name) {
            bad.push(format!("{package} depends on {name}"));
        }
        if ["tokio", "criterion"].contains(&name) && package != "vaio-host" {
            bad.push(format!(
                "{package} depends on {name}, which only vaio-host and tests may"
            ));
        }
    }
    for name in dependencies(manifest, "[dev-dependencies]") {
        if name.starts_with("vaio-") && !below.contains(&name) && !in_tests.contains(&name) {
            bad.push(format!("the tests of {package} depend on {name}"));
        }
    }
    bad
}

/// A line "Version: \`NAME = VALUE\`" of a specification, against `const NAME: ... = VALUE;` in the code.
fn spec_version(spec: &File, sources: &[File]) -> Vec<String> {
    let mut bad = Vec::new();
    for line in spec
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("Version: `"))
    {
        let Some((name, value)) = line
            .split('`')
            .next()
            .and_then(|both| both.split_once(" = "))
        else {
            bad.push(format!("{}: not `NAME = VALUE`: {line}", spec.path));
            continue;
        };
        let says = |line: &str| {
            has_word(line, &format!("const {name}"))
                && line.trim_end().ends_with(&format!("= {value};"))
        };
        if !sources.iter().any(|file| file.text.lines().any(says)) {
            bad.push(format!(
                "{}: no `const {name}` with the value {value} in the code",
                spec.path
            ));
        }
    }
    bad
}

/// Relative links of a Markdown file that lead nowhere.
fn dead_links(file: &File, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let targets = file
        .text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next());
    let local = targets
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.contains("NNNN"));
    let dead = local.filter(|target| !exists(&format!("{folder}/{target}")));
    dead.map(|target| format!("{}: dead link {target}", file.path))
        .collect()
}

/// `figure NAME` in a Markdown file that no bench, script or test prints.
fn unknown_figures(file: &File, printers: &[File]) -> Vec<String> {
    let names = file.text.split("figure ").skip(1).filter_map(|rest| {
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next()
    });
    let names = names.filter(|name| name.contains('_') && name.to_lowercase() == **name);
    let unknown = names.filter(|name| !printers.iter().any(|printer| printer.text.contains(name)));
    unknown
        .map(|name| format!("{}: nothing prints figure {name}", file.path))
        .collect()
}

/// The mutations of a list whose text is not to be found exactly once in its file.
fn unfit_mutations(list: &File, read: impl Fn(&str) -> String) -> Vec<String> {
    let mut bad = Vec::new();
    for block in list.text.split("\n\n") {
        let value = |key: &str| {
            let (_, rest) = block.split_once(key)?;
            let mut lines = rest.lines();
            let first = lines.next().unwrap_or_default().trim_start();
            let more = lines.map_while(|line| line.strip_prefix("    "));
            let all = std::iter::once(first).filter(|line| !line.is_empty());
            Some(all.chain(more).collect::<Vec<_>>().join("\n"))
        };
        let (Some(path), Some(find)) = (value("file:"), value("\nfind:")) else {
            continue;
        };
        let times = read(&path).matches(&find).count();
        if times != 1 {
            bad.push(format!("{}: {times} times in {path}: {find:?}", list.path));
        }
    }
    bad
}

#[track_caller]
fn assert_tidy(complaints: &[String]) {
    assert!(
        complaints.is_empty(),
        "untidy:\n  {}",
        complaints.join("\n  ")
    );
}

#[test]
fn files_are_short() {
    assert_tidy(
        &files(&[".rs"])
            .iter()
            .filter_map(too_long)
            .collect::<Vec<_>>(),
    );
}

#[test]
fn words_that_must_not_ship_are_absent() {
    assert_tidy(
        &files(&[".rs"])
            .iter()
            .flat_map(forbidden_words)
            .collect::<Vec<_>>(),
    );
}

#[test]
fn mutations_fit_the_code() {
    let read = |path: &str| fs::read_to_string(top().join(path)).unwrap_or_default();
    let all = files(&[".txt"]);
    let lists: Vec<_> = (all.iter().filter(|file| file.path.contains("/mutations/"))).collect();
    let bad = lists.iter().flat_map(|list| unfit_mutations(list, read));
    assert_tidy(&bad.collect::<Vec<_>>());
    assert!(lists.len() >= 3, "lists of mutations are looked at");
    let text = "file: a.rs\nfind: x == y\nreplace: true".to_owned();
    let path = "list".to_owned();
    let list = File { path, text };
    assert_eq!(unfit_mutations(&list, |_| "x == y".to_owned()), [""; 0]);
    assert_eq!(unfit_mutations(&list, |_| "x != y".to_owned()).len(), 1);
}

#[test]
fn imports_point_downwards() {
    let mut bad: Vec<String> = files(&[".rs"]).iter().flat_map(upward_import).collect();
    for (package, ..) in LAYERS {
        let manifest =
            fs::read_to_string(top().join(package).join("Cargo.toml")).expect("a manifest");
        bad.extend(layering(package, &manifest));
    }
    assert_tidy(&bad);
}

/// The vendor's crate stands outside the workspace, and asks for nothing that a vendor outside the
/// repository would not have.
fn vendor_manifest(manifest: &str, version: &str) -> Vec<String> {
    let mut bad = Vec::new();
    let mut say = |is_bad: bool, what: &str| bad.extend(is_bad.then(|| what.to_owned()));
    let has_line = |wanted: &str| manifest.lines().any(|line| line == wanted);
    say(!has_line("[workspace]"), "it is no workspace of its own");
    say(
        manifest.contains(".workspace = true"),
        "it inherits from the workspace around it",
    );
    for (section, wanted) in [
        ("[dependencies]", "vaio-core"),
        ("[dev-dependencies]", "vaio-testkit"),
    ] {
        let ours = |name: &&str| name.starts_with("vaio-");
        let names: Vec<_> = dependencies(manifest, section)
            .into_iter()
            .filter(ours)
            .collect();
        say(
            names != [wanted],
            &format!("{section} has {names:?}, not {wanted} alone"),
        );
        let line = format!("{wanted} = {{ version = \"{version}\", path = \"../../{wanted}\" }}");
        say(!has_line(&line), &format!("no line `{line}`"));
    }
    bad
}

#[test]
fn vendor_filter_stands_alone() {
    let read = |path: &str| fs::read_to_string(top().join(path)).expect("a manifest");
    let manifest = read("examples/vendor-filter/Cargo.toml");
    let version = env!("CARGO_PKG_VERSION");
    assert_tidy(&vendor_manifest(&manifest, version));
    assert!(
        read("Cargo.toml").contains("exclude = [\"examples/vendor-filter\"]"),
        "the workspace excludes it"
    );
    assert!(!vendor_manifest(&manifest.replace("[workspace]", ""), version).is_empty());
    assert!(!vendor_manifest(&manifest, "9.9.9").is_empty());
}

#[test]
fn every_decision_is_in_the_index() {
    let index = fs::read_to_string(top().join("docs/adr/README.md")).expect("an index");
    let records = files(&[".md"])
        .into_iter()
        .filter(|file| file.path.starts_with("docs/adr/"));
    let names = records.filter_map(|file| file.path.strip_prefix("docs/adr/").map(str::to_owned));
    let missing = names.filter(|name| name != "README.md" && !index.contains(&format!("({name})")));
    assert_tidy(
        &missing
            .map(|name| format!("docs/adr/README.md does not list {name}"))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn documents_agree_with_the_repository() {
    let (documents, sources) = (files(&[".md"]), files(&[".rs"]));
    let mut printers = files(&[".rs", ".py"]);
    for folder in ["scripts", "scripts/e2e"] {
        let entries = fs::read_dir(top().join(folder)).expect("readable folder");
        let paths = entries
            .map(|entry| entry.expect("readable entry").path())
            .filter(|path| path.is_file());
        printers.extend(paths.map(|path| File {
            path: path.display().to_string(),
            text: fs::read_to_string(&path).unwrap_or_default(),
        }));
    }
    let mut bad = Vec::new();
    for document in &documents {
        bad.extend(dead_links(document, |path| {
            top().join(path.trim_start_matches('/')).exists()
        }));
        bad.extend(unknown_figures(document, &printers));
        if document.path.starts_with("docs/spec/") {
            bad.extend(spec_version(document, &sources));
        }
    }
    assert_tidy(&bad);
}

#[test]
fn rules_bite_on_bad_input() {
    let file = |path: &str, text: &str| File {
        path: path.to_owned(),
        text: text.to_owned(),
    };
    assert!(too_long(&file("a/src/b.rs", &"x\n".repeat(501))).is_some());
    assert!(
        too_long(&file(
            "a/src/b.rs",
            &format!("{}#[cfg(test)]\n{0}", "x\n".repeat(400))
        ))
        .is_none()
    );
    let raw = concat!("un", "safe { *p }");
    assert_eq!(forbidden_words(&file("vaio-core/src/io.rs", raw)).len(), 1);
    assert!(forbidden_words(&file(URING, raw)).is_empty());
    assert_eq!(
        forbidden_words(&file("vaio-core/src/io.rs", concat!("to", "do!()"))).len(),
        1
    );
    assert_eq!(
        upward_import(&file("vaio-core/src/filter.rs", "use crate::chain::Chain;")).len(),
        1
    );
    assert!(upward_import(&file("vaio-core/src/port.rs", "use crate::chain::Chain;")).is_empty());
    assert_eq!(
        layering(
            "vaio-cache",
            "[dependencies]\nvaio-replicate.workspace = true\n"
        )
        .len(),
        1
    );
    assert_eq!(
        layering("vaio-core", "[dependencies]\ntokio = \"1\"\n").len(),
        1
    );
    assert!(layering("vaio-core", "[dev-dependencies]\ntokio = \"1\"\n").is_empty());
    let spec = file("docs/spec/a.md", "Version: `A_VERSION = 2`");
    assert_eq!(
        spec_version(&spec, &[file("a.rs", "const A_VERSION: u32 = 1;")]).len(),
        1
    );
    assert!(spec_version(&spec, &[file("a.rs", "pub const A_VERSION: u32 = 2;")]).is_empty());
    assert_eq!(
        dead_links(&file("docs/a.md", "[x](b.md#c)"), |_| false),
        ["docs/a.md: dead link b.md"]
    );
    assert_eq!(
        unknown_figures(&file("README.md", "figure layer_ns 3"), &[]).len(),
        1
    );
}
