//! The event log of a recording, for tools: one JSON object in each line. Pure.

use std::fmt::Write as _;

use super::Recording;

/// Every event: `world` (0: the run, 1: what was made of its crash), `at_ns`, `host`, `task`,
/// `kind`, `text`, `value`. Absent where there is none: `host`, `task`, `text`.
pub fn events(recording: &Recording) -> String {
    let mut out = String::new();
    for (world, event) in &recording.events {
        let _ = write!(out, "{{\"world\":{world},\"at_ns\":{}", event.at.as_nanos());
        if let Some(host) = &event.host {
            let _ = write!(out, ",\"host\":{}", string(host));
        }
        if let Some(task) = event.task {
            let _ = write!(out, ",\"task\":{}", string(task));
        }
        let _ = write!(out, ",\"kind\":{}", string(event.kind));
        if !event.text.is_empty() {
            let _ = write!(out, ",\"text\":{}", string(&event.text));
        }
        let _ = writeln!(out, ",\"value\":{}}}", event.value);
    }
    out
}

/// A JSON string.
fn string(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if u32::from(control) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::string;

    #[test]
    fn text_is_escaped_as_json_wants_it() {
        assert_eq!(string("a\"b\\c\n\u{1}é"), "\"a\\\"b\\\\c\\n\\u0001é\"");
    }
}
