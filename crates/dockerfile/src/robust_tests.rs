//! Any bytes can be read: nothing panics, and time grows with length only.

use proptest::prelude::*;

use crate::lint::{LintConfig, Linter};
use crate::shell::{Lexer, NoVariables};
use crate::{Dockerfile, detect_syntax, parse};

fn read(data: &[u8]) {
    let (ast, findings) = parse(data);
    let lint = Linter::new(LintConfig::default());
    // Right or wrong, it gives an answer.
    drop(Dockerfile::from_ast(&ast, &findings, &lint));
    detect_syntax(data);
    crate::check_directive(data);
}

proptest! {
    #[test]
    fn any_bytes_can_be_read(data in prop::collection::vec(any::<u8>(), 0..400)) {
        read(&data);
    }

    #[test]
    fn any_text_of_the_languages_characters_can_be_read(
        text in "(?s)(FROM a\n)?([A-Z]{3,7} |[-=\"'\\\\`$\\{\\}<\\[\\],# \t\r\na-z0-9é:%/*?]){0,80}"
    ) {
        read(text.as_bytes());
        let mut lexer = Lexer::new('\\');
        drop(lexer.expand(&text, &NoVariables));
        lexer.skip_unset = true;
        lexer.raw_quotes = true;
        drop(lexer.expand(&text, &NoVariables));
    }

    #[test]
    fn a_text_without_special_characters_is_its_own_expansion(text in "[a-zA-Z0-9 ./:=-]{0,60}") {
        let outcome = Lexer::new('\\').expand(&text, &NoVariables).unwrap();
        prop_assert_eq!(outcome.text, text);
    }
}

#[test]
fn large_files_are_read_in_one_pass() {
    // Each of these would take minutes if a step looked at what was read before.
    for piece in [
        "RUN a \\\n",
        "# comment\n",
        "FROM a\nRUN <<EOF\nx\nEOF\n",
        "ENV a=b\n",
        "LABEL \"a\"='b' ",
        "${a:-",
        "\\\n",
        "ONBUILD ",
        "[",
        "RUN <<A <<B\nA\nB\n",
        "COPY <<-E /x\n\t\nE\n",
        "FROM a AS b\nFROM b\n",
        "RUN --mount=type=bind,target=/a ",
        "# check=skip=x\n",
        "\n\n\\\n",
        "${a//b/",
        "\"\\",
        "é\u{2028}",
    ] {
        let text = format!("FROM a\nENV {}", piece.repeat(1_000_000 / piece.len()));
        read(text.as_bytes());
        let lines = piece.repeat(1_000_000 / piece.len());
        read(lines.as_bytes());
    }
}

#[test]
fn long_words_are_expanded_in_one_pass() {
    // A megabyte each: squared, that would not end while somebody waits.
    let variables = std::collections::BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    for piece in [
        "$a", "${a}", "'x'", "\"$a\"", "\\x", "${a:-x}", "${b:+x}", "${a%b}", " ", "x ",
    ] {
        let text = piece.repeat(1_000_000 / piece.len());
        let outcome = Lexer::new('\\').expand(&text, &variables).unwrap();
        assert!(outcome.text.len() <= text.len(), "{piece}");
    }
    for nested in ["${a:-", "\"${a:+", "${a#"] {
        let text = nested.repeat(1_000_000 / nested.len());
        assert!(Lexer::new('\\').expand(&text, &variables).is_err());
    }
}
