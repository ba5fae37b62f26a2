//! Bytes of a Dockerfile → instructions as words: continuation lines, comments, directives,
//! here-documents, flags and the forms of arguments. What an instruction means is not looked at.
//!
//! Never fails: a line that cannot be read becomes a [`Diagnostic`] and reading goes on. Each byte
//! is looked at a bounded number of times.

use crate::arguments::{self, Arguments};
use crate::directive::DirectiveReader;
use crate::heredoc::{self, Heredoc};
use crate::quote::is_space;
use crate::source::{Diagnostic, LINE_BYTES_MAX, Lines, PhysicalLines, Severity};

/// A Dockerfile as words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ast {
    /// The instructions in order.
    pub instructions: Vec<Node>,
    /// The escape character: `\`, or a backtick if the `escape` directive says so.
    pub escape: char,
}

/// An instruction as words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The keyword as it is written.
    pub keyword: String,
    /// `--name=value` words between the keyword and the arguments, unquoted.
    pub flags: Vec<String>,
    /// The arguments.
    pub arguments: Arguments,
    /// The whole instruction with continuation lines joined.
    pub original: String,
    /// Its here-documents.
    pub heredocs: Vec<Heredoc>,
    /// Where it stands.
    pub lines: Lines,
    /// The comment lines above it, without `#`.
    pub comments: Vec<String>,
}

/// Reads a Dockerfile.
pub fn parse(data: &[u8]) -> (Ast, Vec<Diagnostic>) {
    let mut parser = Parser {
        lines: PhysicalLines::new(data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data)),
        line: 0,
        directives: DirectiveReader::new("#", 0),
        comments: Vec::new(),
        ast: Ast {
            instructions: Vec::new(),
            escape: '\\',
        },
        diagnostics: Vec::new(),
    };
    while let Some(line) = parser.lines.next() {
        parser.read_instruction(line);
    }
    if parser.line == 0 && !data.is_empty() {
        // A byte order mark alone is a line too.
        parser.line = 1;
    }
    let empty = parser.ast.instructions.is_empty() && !parser.has_errors();
    if empty {
        parser.error("file with no instructions", Lines::one(parser.line));
    } else if parser.lines.too_long() {
        let message = format!(
            "dockerfile line greater than max allowed size of {}",
            LINE_BYTES_MAX - 1
        );
        parser.error(message, Lines::one(parser.line));
    }
    (parser.ast, parser.diagnostics)
}

/// The message of the finding for blank lines inside of an instruction.
pub(crate) const EMPTY_CONTINUATION: &str = "Empty continuation line";

struct Parser<'a> {
    lines: PhysicalLines<'a>,
    /// How many physical lines were read.
    line: u32,
    directives: DirectiveReader,
    comments: Vec<String>,
    ast: Ast,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Parser<'a> {
    fn has_errors(&self) -> bool {
        self.diagnostics
            .iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    fn error(&mut self, message: impl Into<String>, lines: Lines) {
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            message: message.into(),
            lines,
        });
    }

    fn read_instruction(&mut self, raw: &'a [u8]) {
        let stripped = String::from_utf8_lossy(without_line_end(raw));
        let stripped = stripped.trim_start_matches(is_space);
        if is_comment(stripped) {
            self.read_comment(raw, stripped);
            return;
        }
        self.read_directive(stripped);
        self.line += 1;
        let first = self.line;
        let (text, mut ended) = without_continuation(stripped, self.ast.escape);
        if ended && text.is_empty() {
            return;
        }
        let mut text = text.to_owned();
        let mut has_empty_line = false;
        while !ended {
            let Some(raw) = self.lines.next() else { break };
            let next = String::from_utf8_lossy(without_line_end(raw));
            self.read_directive(&next);
            self.line += 1;
            let bare = next.trim_start_matches(is_space);
            if is_comment(bare) {
                continue;
            }
            if bare.is_empty() {
                has_empty_line = true;
                continue;
            }
            let (more, last) = without_continuation(&next, self.ast.escape);
            text.push_str(more);
            ended = last;
        }
        if has_empty_line {
            self.diagnostics.push(Diagnostic {
                severity: Severity::Warning,
                message: EMPTY_CONTINUATION.to_owned(),
                lines: Lines::one(self.line),
            });
        }
        let comments = std::mem::take(&mut self.comments);
        self.finish_instruction(text, first, comments);
    }

    fn read_comment(&mut self, raw: &[u8], stripped: &str) {
        let raw = String::from_utf8_lossy(raw);
        let mut chars = raw.chars();
        chars.next();
        let comment = chars.as_str().trim_matches(is_space);
        let is_directive = self.read_directive(stripped);
        self.line += 1;
        if comment.is_empty() {
            self.comments.clear();
        } else if !is_directive {
            self.comments.push(comment.to_owned());
        }
    }

    /// Takes notice of a directive; true if the line is one.
    fn read_directive(&mut self, line: &str) -> bool {
        // The line that is being read has not been counted: that is how stock numbers it.
        let here = Lines::one(self.line);
        match self.directives.read(line) {
            Ok(Some(found)) => {
                if found.name == "escape" {
                    match found.value.as_str() {
                        "\\" => self.ast.escape = '\\',
                        "`" => self.ast.escape = '`',
                        other => self.error(
                            format!("invalid escape token '{other}' does not match ` or \\"),
                            here,
                        ),
                    }
                }
                true
            }
            Ok(None) => false,
            Err(message) => {
                self.error(message, here);
                true
            }
        }
    }

    fn finish_instruction(&mut self, text: String, first: u32, comments: Vec<String>) {
        let lines = Lines::new(first, self.line);
        let mut node = match node_of_line(&text, self.ast.escape, comments, 0) {
            Ok(node) => node,
            Err(message) => return self.error(message, lines),
        };
        if can_have_heredocs(&node) && text.contains("<<") {
            match heredoc::in_line(&text) {
                Ok(heredocs) => {
                    for heredoc in heredocs {
                        let Some(read) = self.read_heredoc(heredoc) else {
                            let lines = Lines::new(first, self.line);
                            return self.error("unterminated heredoc", lines);
                        };
                        node.heredocs.push(read);
                    }
                }
                Err(message) => return self.error(message, lines),
            }
        }
        node.lines = Lines::new(first, self.line);
        self.ast.instructions.push(node);
    }

    fn read_heredoc(&mut self, mut heredoc: Heredoc) -> Option<Heredoc> {
        for line in self.lines.by_ref() {
            self.line += 1;
            let mut candidate = without_line_end(line);
            if heredoc.chomp {
                while let Some(rest) = candidate.strip_prefix(b"\t") {
                    candidate = rest;
                }
            }
            if candidate == heredoc.name.as_bytes() {
                return Some(heredoc);
            }
            heredoc.content.extend_from_slice(line);
        }
        None
    }
}

/// How deep `ONBUILD ONBUILD …` is read; more than one is refused where it is understood.
const ONBUILD_DEPTH_MAX: usize = 2;

/// Reads one instruction whose continuation lines are joined.
fn node_of_line(
    line: &str,
    escape: char,
    comments: Vec<String>,
    depth: usize,
) -> Result<Node, String> {
    let command = arguments::split_command(line, escape);
    let arguments = if command.keyword.eq_ignore_ascii_case("onbuild") {
        if command.rest.is_empty() || depth >= ONBUILD_DEPTH_MAX {
            Arguments::default()
        } else {
            let inner = node_of_line(&command.rest, escape, Vec::new(), depth + 1)?;
            let mut words = vec![inner.keyword.clone()];
            words.extend(inner.arguments.words.iter().cloned());
            Arguments {
                words,
                json: false,
                inner: Some(Box::new(inner)),
            }
        }
    } else {
        arguments::parse(&command.keyword, &command.rest, escape)?
    };
    Ok(Node {
        keyword: command.keyword,
        flags: command.flags,
        arguments,
        original: line.to_owned(),
        comments,
        ..Node::default()
    })
}

fn can_have_heredocs(node: &Node) -> bool {
    let node = node.arguments.inner.as_deref().unwrap_or(node);
    let takes = ["add", "copy", "run"]
        .iter()
        .any(|keyword| node.keyword.eq_ignore_ascii_case(keyword));
    takes && !node.arguments.json
}

fn without_line_end(mut line: &[u8]) -> &[u8] {
    while let Some((b'\r' | b'\n', rest)) = line.split_last() {
        line = rest;
    }
    line
}

fn is_comment(stripped: &str) -> bool {
    stripped.starts_with('#')
}

/// The line without its continuation character, and whether the instruction ends with it. An
/// escape character in front of another one does not continue.
fn without_continuation(line: &str, escape: char) -> (&str, bool) {
    let bare = line.trim_end_matches([' ', '\t']);
    match bare.strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, false),
        _ => (line, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<(String, Vec<String>, (u32, u32))> {
        let (ast, findings) = parse(text.as_bytes());
        assert!(
            findings.iter().all(|f| f.severity == Severity::Warning),
            "{findings:?}"
        );
        ast.instructions
            .into_iter()
            .map(|n| (n.keyword, n.arguments.words, (n.lines.first, n.lines.last)))
            .collect()
    }

    fn first_error(text: &str) -> (String, u32, u32) {
        let (_, findings) = parse(text.as_bytes());
        let found = findings
            .into_iter()
            .find(|f| f.severity == Severity::Error)
            .unwrap();
        (found.message, found.lines.first, found.lines.last)
    }

    #[test]
    fn continuation_lines_skip_comments_and_blank_lines() {
        let text = "FROM \\\n  busybox\n\nRUN a \\\n# c\n  b \\\n\n  \\\n  c\nCMD x\\\\\nUSER y";
        assert_eq!(
            words(text),
            [
                ("FROM".to_owned(), vec!["busybox".to_owned()], (1, 2)),
                ("RUN".to_owned(), vec!["a   b     c".to_owned()], (4, 9)),
                ("CMD".to_owned(), vec!["x\\\\".to_owned()], (10, 10)),
                ("USER".to_owned(), vec!["y".to_owned()], (11, 11)),
            ]
        );
    }

    #[test]
    fn the_escape_directive_changes_continuation() {
        let (ast, _) = parse(b"# escape=`\nFROM a`\nb\\\n");
        assert_eq!(ast.escape, '`');
        assert_eq!(ast.instructions[0].arguments.words, ["ab\\"]);
        assert_eq!(
            first_error("# escape=x\nFROM a").0,
            "invalid escape token 'x' does not match ` or \\"
        );
        assert_eq!(
            first_error("# escape=`\n# escape=`\nFROM a").0,
            "only one escape parser directive can be used"
        );
    }

    #[test]
    fn heredocs_keep_their_lines() {
        let text = "FROM a\nCOPY <<A <<-'B' /x/\n1 $v\nA\n\t2\n\tB\nRUN <<E\r\nx\r\nE\r\nUSER u";
        let (ast, findings) = parse(text.as_bytes());
        assert_eq!(findings, []);
        let copy = &ast.instructions[1];
        assert_eq!(copy.lines, Lines::new(2, 6));
        assert_eq!(copy.heredocs[0].content, b"1 $v\n");
        assert_eq!(copy.heredocs[1].text(), b"2\n");
        assert_eq!(ast.instructions[2].heredocs[0].content, b"x\r\n");
        assert_eq!(ast.instructions[3].lines, Lines::one(10));
        assert_eq!(
            first_error("FROM a\nRUN <<EOF\nx\n"),
            ("unterminated heredoc".to_owned(), 2, 3)
        );
    }

    #[test]
    fn onbuild_heredocs_belong_to_the_onbuild() {
        let (ast, _) = parse(b"FROM a\nONBUILD RUN <<E\nx\nE\nONBUILD CMD <<F\n");
        assert_eq!(ast.instructions[1].heredocs[0].name, "E");
        assert_eq!(ast.instructions[1].arguments.words[0], "RUN");
        assert!(ast.instructions[2].heredocs.is_empty());
    }

    #[test]
    fn comments_above_an_instruction_are_kept_until_an_empty_one() {
        let (ast, _) = parse(b"# syntax=x\n# a\n#\n# b c\nFROM a\n# d\nRUN x\n");
        assert_eq!(ast.instructions[0].comments, ["b c"]);
        assert_eq!(ast.instructions[1].comments, ["d"]);
    }

    #[test]
    fn a_file_without_instructions_and_a_line_too_long_are_errors() {
        assert_eq!(first_error("").0, "file with no instructions");
        assert_eq!(first_error("# only\n\n").0, "file with no instructions");
        let long = format!("FROM a\nRUN {}\n", "x".repeat(70_000));
        assert_eq!(
            first_error(&long).0,
            "dockerfile line greater than max allowed size of 65535"
        );
    }
}
