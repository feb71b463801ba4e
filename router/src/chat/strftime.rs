//! `strftime_now`: the date for templates that state it. In UTC, as servers' clocks are.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Formats `time` by the directives that templates use; an unknown one is an error rather than a wrong prompt.
pub(super) fn format(format: &str, time: SystemTime) -> Result<String, Error> {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let clock = Clock::new(seconds);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = characters.next();
        let pad = directive != Some('-');
        if !pad {
            directive = characters.next();
        }
        let text = directive.and_then(|directive| clock.field(directive, pad));
        let Some(text) = text else {
            let message = format!("strftime_now: unknown directive in {format:?}");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        };
        out.push_str(&text);
    }
    Ok(out)
}

struct Clock {
    year: u64,
    /// From 0.
    month: usize,
    day: u64,
    day_of_year: u64,
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Clock {
    fn new(seconds: u64) -> Self {
        let mut days = seconds / 86_400;
        let weekday = usize::try_from((days + 4) % 7).unwrap_or(0);
        let mut year = 1970;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let day_of_year = days + 1;
        let mut month = 0;
        while days >= days_in_month(year, month) {
            days -= days_in_month(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: days + 1,
            day_of_year,
            weekday,
            hour: seconds / 3600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }

    fn field(&self, directive: char, pad: bool) -> Option<String> {
        let number = |value: u64, width: usize| {
            let width = if pad { width } else { 1 };
            format!("{value:0width$}")
        };
        let month = self.month as u64 + 1;
        let hour_12 = (self.hour + 11) % 12 + 1;
        Some(match directive {
            'Y' => number(self.year, 4),
            'y' => number(self.year % 100, 2),
            'm' => number(month, 2),
            'd' => number(self.day, 2),
            'e' => format!("{:>2}", self.day),
            'j' => number(self.day_of_year, 3),
            'H' => number(self.hour, 2),
            'I' => number(hour_12, 2),
            'M' => number(self.minute, 2),
            'S' => number(self.second, 2),
            'B' => MONTHS[self.month].to_owned(),
            'b' | 'h' => MONTHS[self.month][..3].to_owned(),
            'A' => DAYS[self.weekday].to_owned(),
            'a' => DAYS[self.weekday][..3].to_owned(),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{month:02}-{:02}", self.year, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'Z' => "UTC".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn days_in_month(year: u64, month: usize) -> u64 {
    match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, text: &str) -> String {
        format(text, UNIX_EPOCH + Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(
            at(0, "%A %d %b %Y %H:%M:%S"),
            "Thursday 01 Jan 1970 00:00:00"
        );
        assert_eq!(at(951_782_399, "%F %T"), "2000-02-28 23:59:59");
        assert_eq!(at(951_782_400, "%d %B %Y %j"), "29 February 2000 060");
        assert_eq!(
            at(1_764_028_800, "%a %-d %b %y %I%p 100%%"),
            "Tue 25 Nov 25 12AM 100%"
        );
    }

    #[test]
    fn unknown_directives_are_refused() {
        assert!(format("%Q", UNIX_EPOCH).is_err());
        assert!(format("%", UNIX_EPOCH).is_err());
    }
}
