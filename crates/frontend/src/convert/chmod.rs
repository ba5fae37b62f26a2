//! Permission bits as `--chmod` has them: octal, or symbolic as for `chmod(1)`.

use diag::Result;

use crate::failure::fail;

/// Permission bits to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// These.
    Octal(u32),
    /// A change that depends on what is there, such as `u+x`.
    Symbolic(String),
}

impl Mode {
    /// Reads them.
    pub(super) fn parse(text: &str) -> Result<Mode> {
        let out_of_range = || {
            fail(format!(
                "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
            ))
        };
        let numeric = text.starts_with(|c: char| c.is_ascii_digit());
        match u32::from_str_radix(text, 8) {
            Ok(bits) if numeric && bits <= 0o7777 => Ok(Mode::Octal(bits)),
            _ if numeric => Err(out_of_range()),
            _ if is_symbolic(text) => Ok(Mode::Symbolic(text.to_owned())),
            _ => Err(fail("invalid syntax")),
        }
    }
}

/// `[ugoa]*([-+=]([rwxXst]*|[ugo]))+` clauses, joined by commas.
fn is_symbolic(text: &str) -> bool {
    text.split(',').all(|clause| {
        let changes = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        changes.starts_with(['+', '-', '=']) && changes.chars().all(|c| "+-=rstwXxugo".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_or_symbolic() {
        assert_eq!(Mode::parse("0755").unwrap(), Mode::Octal(0o755));
        assert_eq!(Mode::parse("7777").unwrap(), Mode::Octal(0o7777));
        for text in ["u=rwX,go=rX", "a+x", "go-r,u+x", "+x", "g=u-w", "=", "u+s"] {
            assert_eq!(Mode::parse(text).unwrap(), Mode::Symbolic(text.to_owned()));
        }
        for (text, message) in [
            (
                "17777",
                "invalid chmod parameter: '17777'. it should be octal string and between 0 and 07777",
            ),
            (
                "8",
                "invalid chmod parameter: '8'. it should be octal string and between 0 and 07777",
            ),
            ("u", "invalid syntax"),
            ("u+z", "invalid syntax"),
            ("rwx", "invalid syntax"),
            ("u+x,", "invalid syntax"),
        ] {
            assert_eq!(Mode::parse(text).unwrap_err().to_string(), message);
        }
    }
}
