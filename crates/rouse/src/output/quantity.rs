//! Numbers with units, short enough for a table.

/// Microseconds as `830 us`, `1.25 ms`, `12.5 ms`, `2.31 s`.
pub fn microseconds(us: f64) -> String {
    if us < 999.5 {
        format!("{us:.0} us")
    } else if us < 999_500.0 {
        format!("{} ms", significant(us / 1e3))
    } else {
        format!("{} s", significant(us / 1e6))
    }
}

/// Bytes as `512 B`, `4.00 KiB`, `12.5 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", significant(value), UNITS[unit])
}

/// Three significant digits.
fn significant(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (us, text) in [
            (0.4, "0 us"),
            (999.0, "999 us"),
            (999.6, "1.00 ms"),
            (12_345.0, "12.3 ms"),
            (123_456.0, "123 ms"),
            (2_310_000.0, "2.31 s"),
        ] {
            assert_eq!(microseconds(us), text);
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1024 * 1024 - 1, "1.00 MiB"),
            (13_107_200, "12.5 MiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
