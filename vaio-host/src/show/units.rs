//! Bytes, durations and moments for people. Pure.

use std::time::Duration;

/// Bytes in the largest unit that leaves a number below 1024, one digit after the point.
pub(crate) fn bytes(value: u64) -> String {
    let mut unit = 0;
    let mut tenths = u128::from(value) * 10;
    while tenths >= 10240 && unit < 5 {
        tenths /= 1024;
        unit += 1;
    }
    let name = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
    if unit == 0 || tenths.is_multiple_of(10) {
        return format!("{} {name}", tenths / 10);
    }
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

pub(crate) fn time(value: Duration) -> String {
    let nanos = value.as_nanos();
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}us", nanos / 1_000),
        1_000_000..1_000_000_000 => format!("{}ms", nanos / 1_000_000),
        _ => {
            let seconds = value.as_secs();
            match seconds {
                0..60 => format!("{seconds}s"),
                60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
                _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
            }
        }
    }
}

/// Time of day in UTC, to the millisecond, from nanoseconds since 1970.
pub(crate) fn wall(nanos: u64) -> String {
    let millis = nanos / 1_000_000;
    let (days, of_day) = (millis / 86_400_000, millis % 86_400_000);
    let (year, month, day) = date(days);
    let (hours, minutes, seconds) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z",
        of_day % 1000
    )
}

/// Year, month and day of a day since 1970-01-01, counting years from March, so that the leap day
/// is the last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_for_people() {
        for (value, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(bytes(value), shown);
        }
        for (nanos, shown) in [
            (7, "7ns"),
            (7_500, "7us"),
            (20_000_000, "20ms"),
            (59_000_000_000, "59s"),
            (61_000_000_000, "1m01s"),
            (7_260_000_000_000, "2h01m"),
        ] {
            assert_eq!(time(Duration::from_nanos(nanos)), shown);
        }
    }

    #[test]
    fn wall_time_is_utc() {
        assert_eq!(wall(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(wall(951_782_400_123_000_000), "2000-02-29T00:00:00.123Z");
        assert_eq!(wall(1_735_689_599_000_000_000), "2024-12-31T23:59:59.000Z");
    }
}
