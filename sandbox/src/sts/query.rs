//! The query protocol's parameters, and the constraints that AWS checks before an operation runs.

use std::borrow::Cow;

use http::{Method, header, request::Parts};

use super::answers::Refusal;

/// The parameters of one request; of two with one name the first counts, as with AWS.
#[derive(Debug)]
pub(crate) struct Parameters(Vec<(String, String)>);

impl Parameters {
    /// From a GET's query, or from a POST's form; a body of another type is not looked at.
    pub(crate) fn of(parts: &Parts, body: &[u8]) -> Self {
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        let is_form = parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"));
        let form = if parts.method == Method::POST && is_form { body } else { &[] };
        let pairs = form_urlencoded::parse(form).chain(form_urlencoded::parse(query));
        Self(pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    /// The parameter's value, if it was sent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The names of all that was sent.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// The members of a list of structures, or of texts where a member's field is empty: `Name.member.1.Field`.
    pub(super) fn members<'a>(&'a self, name: &str, field: &str) -> Vec<&'a str> {
        let dot = if field.is_empty() { "" } else { "." };
        (1..).map_while(|number| self.get(&format!("{name}.member.{number}{dot}{field}"))).collect()
    }

    /// Whether a parameter whose name starts so was sent (lists and structures are `Name.member.1`).
    pub(super) fn has_member(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
    }
}

/// Collects what is wrong with the parameters; AWS reports all of it in one ValidationError.
#[derive(Debug, Default)]
pub(super) struct Constraints(Vec<String>);

impl Constraints {
    /// A string that must be there, of so many characters, which the pattern accepts.
    pub(super) fn string<'a>(
        &mut self,
        name: &str,
        value: Option<&'a str>,
        (shortest, longest): (usize, usize),
        pattern: Option<Pattern>,
    ) -> &'a str {
        let Some(value) = value else {
            self.0.push(format!("Value null at '{name}' failed to satisfy constraint: Member must not be null"));
            return "";
        };
        let shown = format!("Value '{value}'");
        self.checked(name, value, &shown, (shortest, longest), pattern);
        value
    }

    /// The same for one that need not be there.
    pub(super) fn optional<'a>(
        &mut self,
        name: &str,
        value: Option<&'a str>,
        lengths: (usize, usize),
        pattern: Pattern,
    ) -> Option<&'a str> {
        value.map(|value| self.string(name, Some(value), lengths, Some(pattern)))
    }

    /// A list of so many members at most.
    pub(super) fn at_most<T: std::fmt::Debug>(&mut self, name: &str, members: &[T], most: usize) {
        if members.len() > most {
            self.0.push(format!(
                "Value '{members:?}' at '{name}' failed to satisfy constraint: Member must have length less than or \
                 equal to {most}"
            ));
        }
    }

    /// The same for a secret: its value is not repeated.
    pub(super) fn secret<'a>(
        &mut self,
        name: &str,
        value: Option<&'a str>,
        (shortest, longest): (usize, usize),
    ) -> &'a str {
        if let Some(value) = value {
            self.checked(name, value, "Value", (shortest, longest), None);
            return value;
        }
        self.string(name, None, (shortest, longest), None)
    }

    fn checked(
        &mut self,
        name: &str,
        value: &str,
        shown: &str,
        (shortest, longest): (usize, usize),
        pattern: Option<Pattern>,
    ) {
        let mut fails = |constraint: Cow<'_, str>| {
            self.0.push(format!("{shown} at '{name}' failed to satisfy constraint: {constraint}"))
        };
        if let Some(pattern) = pattern.filter(|pattern| !(pattern.accepts)(value)) {
            fails(format!("Member must satisfy regular expression pattern: {}", pattern.text).into());
        }
        let length = value.chars().count();
        if length < shortest {
            fails(format!("Member must have length greater than or equal to {shortest}").into());
        }
        if length > longest {
            fails(format!("Member must have length less than or equal to {longest}").into());
        }
    }

    /// An optional number.
    ///
    /// # Errors
    /// When it is no number of 32 bits: that is found before all other faults.
    pub(super) fn number(
        &mut self,
        name: &str,
        value: Option<&str>,
        (least, most): (i32, i32),
    ) -> Result<Option<i32>, Refusal> {
        let Some(text) = value else { return Ok(None) };
        let number: i32 = text.parse().map_err(|_| Refusal::malformed_number(text))?;
        let bound = if number < least {
            format!("greater than or equal to {least}")
        } else if number > most {
            format!("less than or equal to {most}")
        } else {
            return Ok(Some(number));
        };
        self.0
            .push(format!("Value '{number}' at '{name}' failed to satisfy constraint: Member must have value {bound}"));
        Ok(Some(number))
    }

    /// Refuses the request if anything was wrong.
    ///
    /// # Errors
    /// One ValidationError with all that is wrong.
    pub(super) fn verdict(self) -> Result<(), Refusal> {
        let count = self.0.len();
        if count == 0 {
            return Ok(());
        }
        let plural = if count == 1 { "" } else { "s" };
        Err(Refusal::bad(
            "ValidationError",
            format!("{count} validation error{plural} detected: {}", self.0.join("; ")),
        ))
    }
}

/// A pattern of AWS's service model: its text, and what it accepts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    text: &'static str,
    accepts: fn(&str) -> bool,
}

/// `arnType` of the STS model.
pub(super) const ARN: Pattern = Pattern {
    text: r"[\u0009\u000A\u000D\u0020-\u007E\u0085\u00A0-\uD7FF\uE000-\uFFFD\u10000-\u10FFFF]+",
    accepts: |value| {
        !value.is_empty()
            && value.chars().all(|c| {
                matches!(c, '\u{9}' | '\u{A}' | '\u{D}' | '\u{20}'..='\u{7E}' | '\u{85}')
                    || matches!(c, '\u{A0}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}')
            })
    },
};

/// `roleSessionNameType` of the STS model.
pub(super) const SESSION_NAME: Pattern = Pattern {
    text: r"[\w+=,.@-]*",
    accepts: |value| value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b)),
};

/// `externalIdType` of the STS model.
pub(super) const EXTERNAL_ID: Pattern = Pattern {
    text: r"[\w+=,.@:\/-]*",
    accepts: |value| value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b)),
};

/// `tagKeyType` of the STS model.
pub(super) const TAG_KEY: Pattern =
    Pattern { text: r"[\p{L}\p{Z}\p{N}_.:/=+\-@]+", accepts: |value| !value.is_empty() && of_a_tag(value) };

/// `tagValueType` of the STS model.
pub(super) const TAG_VALUE: Pattern = Pattern { text: r"[\p{L}\p{Z}\p{N}_.:/=+\-@]*", accepts: of_a_tag };

fn of_a_tag(value: &str) -> bool {
    value.chars().all(|c| c.is_alphanumeric() || (c.is_whitespace() && !c.is_control()) || "_.:/=+-@".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(check: impl FnOnce(&mut Constraints)) -> String {
        let mut constraints = Constraints::default();
        check(&mut constraints);
        constraints.verdict().unwrap_err().message.unwrap().into_owned()
    }

    #[test]
    fn constraints_are_reported_in_awss_words() {
        assert_eq!(
            refusal(|c| {
                c.string("roleArn", None, (20, 2048), Some(ARN));
            }),
            "1 validation error detected: Value null at 'roleArn' failed to satisfy constraint: Member must not be null"
        );
        assert_eq!(
            refusal(|c| {
                c.string("roleArn", Some(""), (20, 2048), Some(ARN));
            }),
            r"2 validation errors detected: Value '' at 'roleArn' failed to satisfy constraint: Member must satisfy regular expression pattern: [\u0009\u000A\u000D\u0020-\u007E\u0085\u00A0-\uD7FF\uE000-\uFFFD\u10000-\u10FFFF]+; Value '' at 'roleArn' failed to satisfy constraint: Member must have length greater than or equal to 20"
        );
        assert_eq!(
            refusal(|c| {
                c.number("durationSeconds", Some("899"), (900, 43200)).unwrap();
            }),
            "1 validation error detected: Value '899' at 'durationSeconds' failed to satisfy constraint: Member must have value greater than or equal to 900"
        );
    }

    #[test]
    fn a_number_is_one_of_32_bits() {
        for (text, number) in [("900", 900), ("+900", 900), ("0900", 900)] {
            assert_eq!(Constraints::default().number("n", Some(text), (900, 43200)).unwrap(), Some(number));
        }
        for text in ["", "abc", "900.0", "2147483648"] {
            let refusal = Constraints::default().number("n", Some(text), (900, 43200)).unwrap_err();
            assert_eq!(refusal.code, "MalformedInput");
            assert_eq!(refusal.message.is_some(), text.is_empty());
        }
    }

    #[test]
    fn a_token_is_never_repeated_in_an_error() {
        assert!(
            !refusal(|c| {
                c.secret("webIdentityToken", Some("abc"), (4, 20000));
            })
            .contains("abc")
        );
    }
}
