//! Permission changes as `chmod(1)` writes them: octal, or `u=rwX,go-w`. The umask counts as 0.

/// The bits a mode change can touch.
const ALL: u32 = 0o7777;

/// A parsed change of permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModeChange(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Exactly these bits.
    Absolute(u32),
    /// `who`, operator, and what is added, removed or set.
    Symbolic {
        who: u32,
        op: char,
        bits: u32,
        /// `X`: execute only for directories and what is executable already.
        execute_if: bool,
        /// Copied from the user (`u`), group (`g`) or other (`o`) bits.
        copy: Option<char>,
    },
}

/// A mode text that is not well formed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid syntax")]
pub struct ModeError;

impl ModeChange {
    /// Sets exactly these bits.
    pub fn absolute(bits: u32) -> Self {
        ModeChange(vec![Step::Absolute(bits & ALL)])
    }

    /// Reads octal or symbolic text.
    pub fn parse(text: &str) -> Result<Self, ModeError> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).map_err(|_| ModeError)?;
            if bits & !ALL != 0 {
                return Err(ModeError);
            }
            return Ok(Self::absolute(bits));
        }
        let mut steps = Vec::new();
        for clause in text.split(',') {
            parse_clause(clause, &mut steps)?;
        }
        Ok(ModeChange(steps))
    }

    /// The permission bits after the change of a file that has `mode`.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let original = mode & ALL;
        let mut bits = original;
        for step in &self.0 {
            bits = match step {
                Step::Absolute(absolute) => *absolute,
                Step::Symbolic {
                    who,
                    op,
                    bits: given,
                    execute_if,
                    copy,
                } => {
                    let mut change = *given & who;
                    if *execute_if && (is_dir || original & 0o111 != 0) {
                        change |= 0o111 & who;
                    }
                    if let Some(class) = copy {
                        change |= copied(bits, *class) & who;
                    }
                    match op {
                        '+' => bits | change,
                        '-' => bits & !change,
                        // `=` leaves set-id bits alone where only `o` is named, as they are not in
                        // `who` then.
                        _ => (bits & !who) | change,
                    }
                }
            };
        }
        bits & ALL
    }
}

/// The permission bits of one class, spread over all three.
fn copied(bits: u32, class: char) -> u32 {
    let three = match class {
        'u' => (bits >> 6) & 7,
        'g' => (bits >> 3) & 7,
        _ => bits & 7,
    };
    three << 6 | three << 3 | three
}

/// `[ugoa]*([-+=][rwxXstugo]*)+`
fn parse_clause(clause: &str, steps: &mut Vec<Step>) -> Result<(), ModeError> {
    let mut chars = clause.chars().peekable();
    let mut who = 0;
    while let Some(c) = chars.peek() {
        who |= match c {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o0007,
            'a' => 0o6777,
            _ => break,
        };
        chars.next();
    }
    let only_other = who == 0o0007;
    let who = if who == 0 { 0o6777 } else { who };
    if chars.peek().is_none() {
        return Err(ModeError);
    }
    while let Some(op) = chars.next() {
        if !matches!(op, '+' | '-' | '=') {
            return Err(ModeError);
        }
        let (mut bits, mut mask, mut execute_if, mut copy) = (0, who, false, None);
        while let Some(c) = chars.peek() {
            match c {
                'r' => bits |= 0o444,
                'w' => bits |= 0o222,
                'x' => bits |= 0o111,
                'X' if op == '-' => bits |= 0o111,
                'X' => execute_if = true,
                's' if !only_other => bits |= 0o6000,
                't' if !only_other => {
                    bits |= 0o1000;
                    mask |= 0o1000;
                }
                's' | 't' => {}
                'u' | 'g' | 'o' => copy = Some(*c),
                '+' | '-' | '=' => break,
                _ => return Err(ModeError),
            }
            chars.next();
        }
        steps.push(Step::Symbolic {
            who: mask,
            op,
            bits,
            execute_if,
            copy,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_as_chmod_says() {
        let cases = [
            ("755", 0o600, false, 0o755),
            ("4711", 0o644, false, 0o4711),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("a+x", 0o644, false, 0o755),
            ("+x", 0o644, false, 0o755),
            ("go-r,u+x", 0o644, false, 0o700),
            ("g=u", 0o640, false, 0o660),
            ("go=u-w", 0o700, false, 0o755),
            ("u+s", 0o755, false, 0o4755),
            ("+t", 0o755, true, 0o1755),
            ("o+s", 0o755, false, 0o755),
            ("go=", 0o777, false, 0o700),
        ];
        for (text, mode, is_dir, expected) in cases {
            let change = ModeChange::parse(text).unwrap();
            assert_eq!(change.apply(mode, is_dir), expected, "{text} on {mode:o}");
        }
        for bad in ["", "u", "u*x", "99", "17777", "u=q", "a+x,"] {
            assert!(ModeChange::parse(bad).is_err(), "{bad}");
        }
    }
}
