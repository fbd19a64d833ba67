//! Answers as text for people. Pure: from JSON to lines.

pub(crate) mod units;

use std::{fmt::Write as _, time::Duration};

use serde_json::Value;

use units::{bytes, time, wall};

/// `vaio status`
pub(crate) fn status(answer: &Value) -> String {
    let mut out = String::new();
    push(
        &mut out,
        &format!(
            "vaio {}, pid {}, up {}, {} NBD connections",
            text(&answer["version"]),
            number(&answer["pid"]),
            time(Duration::from_millis(number(&answer["uptime_ms"]))),
            number(&answer["nbd_connections"])
        ),
    );
    if let Some(ms) = answer["io_thread_blocked_ms"].as_u64() {
        push(
            &mut out,
            &format!(
                "PROBLEM: the IO thread has not come back for {}",
                time(Duration::from_millis(ms))
            ),
        );
    }
    for disk in list(&answer["disks"]) {
        push(&mut out, "");
        self::disk(&mut out, disk);
    }
    out
}

fn disk(out: &mut String, disk: &Value) {
    push(
        out,
        &format!("disk {} = {}", text(&disk["name"]), text(&disk["spec"])),
    );
    if let Some(filter) = disk["polling"].as_str() {
        push(out, &format!("  runs now    {filter}"));
    }
    if let Some(problem) = disk["problem"].as_str() {
        push(out, &format!("  PROBLEM     {problem}"));
        return;
    }
    let running = disk["running"]
        .as_str()
        .map_or_else(String::new, |verb| format!(", {verb} runs"));
    push(
        out,
        &format!(
            "  state       {}{running}, {} in flight, {} orphans",
            text(&disk["phase"]),
            number(&disk["in_flight"]),
            number(&disk["orphans"])
        ),
    );
    push(
        out,
        &format!(
            "  size        {}, blocks of {}",
            bytes(number(&disk["info"]["capacity"])),
            number(&disk["info"]["logical_block"])
        ),
    );
    push(
        out,
        &format!("  dirty       {}", bytes(number(&disk["dirty_bytes"]))),
    );
    if list(&disk["layers"]).is_empty() {
        push(out, "  filters     none");
    }
    for layer in list(&disk["layers"]) {
        self::layer(out, layer);
    }
}

fn layer(out: &mut String, layer: &Value) {
    let filter = &layer["filter"];
    let mut line = format!(
        "  filter      {} {} ({}): {}",
        text(&layer["name"]),
        text(&layer["version"]),
        text(&layer["class"]),
        text(&layer["health"])
    );
    if number(&filter["dirty_bytes"]) > 0 {
        let _ = write!(line, ", {} dirty", bytes(number(&filter["dirty_bytes"])));
    }
    if number(&filter["lag_bytes"]) > 0 {
        let _ = write!(
            line,
            ", replica lacks {}",
            bytes(number(&filter["lag_bytes"]))
        );
    }
    if number(&layer["faults"]) > 0 {
        let _ = write!(line, ", {} faults", number(&layer["faults"]));
    }
    push(out, &line);
    for problem in [&layer["fault"], &filter["problem"]] {
        if let Some(problem) = problem.as_str() {
            push(out, &format!("    PROBLEM   {problem}"));
        }
    }
    for pair in list(&filter["details"]) {
        push(
            out,
            &format!("    {:<9} {}", text(&pair[0]), text(&pair[1])),
        );
    }
    for pair in list(&filter["values"]) {
        let (name, value) = named(text(&pair[0]), number(&pair[1]));
        push(out, &format!("    {name:<15} {value}"));
    }
}

/// A value of a filter in the unit that its name ends with.
fn named(name: &str, value: u64) -> (String, String) {
    let name = name.strip_suffix("_total").unwrap_or(name);
    let (name, value) = if let Some(name) = name.strip_suffix("_bytes") {
        (name, bytes(value))
    } else if let Some(name) = name.strip_suffix("_ms") {
        (name, time(Duration::from_millis(value)))
    } else {
        (name, value.to_string())
    };
    (name.replace('_', " "), value)
}

/// `vaio stats`
pub(crate) fn stats(answer: &Value) -> String {
    let mut out = String::new();
    for (index, disk) in list(&answer["disks"]).iter().enumerate() {
        if index > 0 {
            push(&mut out, "");
        }
        push(&mut out, &format!("disk {}", text(&disk["name"])));
        push(
            &mut out,
            &format!(
                "  {:<16} {:>12} {:>10} {:>8} {:>9} {:>9} {:>9} {:>9}",
                "", "IOs", "bytes", "errors", "p50", "p99", "p99.9", "max"
            ),
        );
        for op in list(&disk["ops"])
            .iter()
            .filter(|op| number(&op["ios"]) > 0)
        {
            push(
                &mut out,
                &format!(
                    "  {:<16} {:>12} {:>10} {:>8} {}",
                    text(&op["op"]),
                    number(&op["ios"]),
                    bytes(number(&op["bytes"])),
                    number(&op["errors"]),
                    quantiles(&op["latency"])
                ),
            );
        }
        push(&mut out, "  own time by layer");
        for layer in list(&disk["layers"]) {
            let ios: u64 = list(&layer["ios"])
                .iter()
                .map(|pair| number(&pair[1]))
                .sum();
            push(
                &mut out,
                &format!(
                    "  {:<16} {:>12} {:>10} {:>8} {}",
                    text(&layer["name"]),
                    ios,
                    "",
                    number(&layer["errors"]),
                    quantiles(&layer["own"])
                ),
            );
        }
        let gate = &disk["gate_closed"];
        push(
            &mut out,
            &format!(
                "  {:<16} {:>12} {:>10} {:>8} {}",
                "gate closed",
                number(&gate["count"]),
                "",
                "",
                quantiles(gate)
            ),
        );
    }
    out
}

fn quantiles(value: &Value) -> String {
    if number(&value["count"]) == 0 {
        return format!("{:>9} {:>9} {:>9} {:>9}", "-", "-", "-", "-");
    }
    let at = |key: &str| time(Duration::from_nanos(number(&value[key])));
    format!(
        "{:>9} {:>9} {:>9} {:>9}",
        at("p50_ns"),
        at("p99_ns"),
        at("p999_ns"),
        at("max_ns")
    )
}

/// `vaio status --watch`: the status, and rates since the view before.
pub(crate) fn watch(status_now: &Value, now: &Value, before: Option<(Duration, &Value)>) -> String {
    let mut out = status(status_now);
    let Some((since, before)) = before else {
        return out;
    };
    let seconds = since.as_secs_f64().max(0.001);
    for disk in list(&now["disks"]) {
        let Some(old) = list(&before["disks"])
            .iter()
            .find(|old| old["name"] == disk["name"])
        else {
            continue;
        };
        push(&mut out, "");
        push(
            &mut out,
            &format!("disk {}, per second", text(&disk["name"])),
        );
        for op in list(&disk["ops"]) {
            let Some(old) = list(&old["ops"]).iter().find(|old| old["op"] == op["op"]) else {
                continue;
            };
            let rate =
                |key: &str| per_second(number(&op[key]).saturating_sub(number(&old[key])), seconds);
            if number(&op["ios"]) == 0 {
                continue;
            }
            push(
                &mut out,
                &format!(
                    "  {:<16} {:>9} IOs {:>10} {}",
                    text(&op["op"]),
                    rate("ios"),
                    bytes(rate("bytes")),
                    quantiles(&op["latency"])
                ),
            );
        }
    }
    out
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for people"
)]
fn per_second(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds).round() as u64
}

/// One line of `vaio events`.
pub(crate) fn event(event: &Value) -> String {
    let mut line = format!(
        "{} {:<7} {} {}: {}",
        wall(number(&event["at"])),
        text(&event["severity"]),
        text(&event["disk"]),
        text(&event["kind"]),
        text(&event["text"])
    );
    if let Some(filter) = event["filter"].as_str() {
        let _ = write!(line, ", filter={filter}");
    }
    if let Some(op) = event["op"].as_str() {
        let _ = write!(line, " op={op}");
    }
    if number(&event["suppressed"]) > 0 {
        let _ = write!(line, " suppressed={}", number(&event["suppressed"]));
    }
    if let Some(next) = event["next_step"].as_str().filter(|next| !next.is_empty()) {
        let _ = write!(line, "; {next}");
    }
    line.push('\n');
    line
}

/// `vaio filters`
pub(crate) fn filters(answer: &Value) -> String {
    let mut out = String::new();
    if list(&answer["filters"]).is_empty() {
        return "this program knows no filters\n".into();
    }
    for filter in list(&answer["filters"]) {
        push(
            &mut out,
            &format!(
                "{} {} ({}): {}",
                text(&filter["name"]),
                text(&filter["version"]),
                text(&filter["class"]),
                text(&filter["summary"])
            ),
        );
        for setting in list(&filter["settings"]) {
            let default = match setting["default"].as_str() {
                None => "required".into(),
                Some("") => "not set".into(),
                Some(default) => format!("default {default}"),
            };
            push(
                &mut out,
                &format!(
                    "  {}: {} ({default})",
                    text(&setting["name"]),
                    text(&setting["summary"])
                ),
            );
        }
    }
    out
}

/// `vaio stack`
pub(crate) fn stack(answer: &Value) -> String {
    let mut out = String::new();
    for disk in list(&answer["disks"]) {
        push(&mut out, &format!("disk {}", text(&disk["name"])));
        for filter in list(&disk["filters"]) {
            let settings: Vec<_> = filter["settings"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, value)| format!("{key}={}", text(value)))
                .collect();
            let separator = if settings.is_empty() { "" } else { ":" };
            push(
                &mut out,
                &format!(
                    "  {}{separator}{}",
                    text(&filter["name"]),
                    settings.join(",")
                ),
            );
        }
    }
    out
}

/// `vaio dirty`
pub(crate) fn dirty(answer: &Value) -> String {
    let mut out = String::new();
    for disk in list(&answer["disks"]) {
        let about = if disk["is_estimate"] == true {
            ", estimated"
        } else {
            ""
        };
        push(
            &mut out,
            &format!(
                "disk {}: {} not at level {}, oldest {}{about}",
                text(&disk["name"]),
                bytes(number(&disk["bytes"])),
                text(&disk["level"]),
                time(Duration::from_millis(number(&disk["oldest_age_ms"])))
            ),
        );
        for extent in list(&disk["extents"]) {
            let (offset, len) = (number(&extent[0]), number(&extent[1]));
            push(&mut out, &format!("  {offset:>16} +{len}"));
        }
    }
    out
}

/// Progress of a flush, as one line.
pub(crate) fn progress(progress: &Value) -> String {
    const WIDTH: u64 = 30;
    let (done, left) = (
        number(&progress["done_bytes"]),
        number(&progress["remaining_bytes"]),
    );
    let all = done.saturating_add(left).max(1);
    let full = u128::from(done) * u128::from(WIDTH) / u128::from(all);
    let bar: String = (0..WIDTH)
        .map(|at| if u128::from(at) < full { '#' } else { '.' })
        .collect();
    let eta = progress["eta"]["secs"].as_u64();
    let eta = eta.map_or_else(String::new, |secs| {
        format!(", about {} left", time(Duration::from_secs(secs)))
    });
    let rate = progress["bytes_per_s"].as_u64();
    let rate = rate.map_or_else(String::new, |rate| format!(", {}/s", bytes(rate)));
    let line = format!(
        "{} [{bar}] {} left{rate}{eta}",
        text(&progress["name"]),
        bytes(left)
    );
    crate::exit::one_line(&line)
}

fn push(out: &mut String, line: &str) {
    out.push_str(&crate::exit::one_line(line));
    out.push('\n');
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn progress_names_what_is_left_rate_and_time() {
        let line = progress(&json!({
            "name": "a", "done_bytes": 1 << 20, "remaining_bytes": 3 << 20,
            "bytes_per_s": 512 << 10, "eta": { "secs": 6, "nanos": 0 },
        }));
        let bar = "#".repeat(7) + &".".repeat(23);
        let text = format!("a [{bar}] 3 MiB left, 512 KiB/s, about 6s left");
        assert_eq!(line, text);
    }

    #[test]
    fn values_are_in_the_unit_of_their_name() {
        let shown = |name, value| named(name, value).1;
        assert_eq!(shown("log_used_bytes", 4 << 20), "4 MiB");
        assert_eq!(shown("oldest_dirty_ms", 1500), "1s");
        assert_eq!(
            named("writes_waited_total", 7),
            ("writes waited".into(), "7".into())
        );
    }

    #[test]
    fn anything_is_shown_without_panic_and_control_characters() {
        for value in [
            json!(null),
            json!({"disks": [{}]}),
            json!({"disks": [{"name": "a\u{1b}[1mb", "layers": [{}]}], "filters": [{}]}),
        ] {
            for show in [status, stats, filters, stack, dirty] {
                assert!(!show(&value).contains('\u{1b}'));
            }
            watch(&value, &value, Some((Duration::ZERO, &value)));
            event(&value);
            progress(&value);
        }
    }
}
