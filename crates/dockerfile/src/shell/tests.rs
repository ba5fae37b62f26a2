use super::*;

fn variables() -> BTreeMap<String, String> {
    [
        ("set", "value"),
        ("empty", ""),
        ("f", "a.tar.gz"),
        ("p", "a/b/c"),
        ("x", "one two"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect()
}

#[test]
fn every_form_of_substitution() {
    let cases = [
        ("$set.x", "value.x"),
        ("${set}x$setx", "valuex"),
        ("${set:-d}${empty:-d}${no:-d}", "valuedd"),
        ("${set-d}${empty-d}${no-d}", "valued"),
        ("${set:+a}${empty:+a}${no:+a}", "a"),
        ("${set+a}${empty+a}${no+a}", "aa"),
        ("${set:?no}${empty?no}", "value"),
        ("${no:-${other:-deep}}", "deep"),
        ("${no:-\"quoted $set\"}", "quoted value"),
        ("${f%.*}|${f%%.*}|${f#*.}|${f##*.}", "a.tar|a|tar.gz|gz"),
        ("${p/\\//-}|${p//\\//-}", "a-b/c|a-b-c"),
        ("${set#v}|${set%e}|${set#x}", "alue|valu|value"),
        ("${set/al/}", "vue"),
        ("pre-${set:+in-$set-in}-post", "pre-in-value-in-post"),
        ("\\$set '$set' \"$set\"", "$set $set value"),
        ("a\\ b\\\\c", "a b\\c"),
        ("\"a\\\"b\\tc\\$d\\\\\"", "a\"b\\tc$d\\"),
        ("$", "$"),
        ("$1x ${10}", "x "),
    ];
    for (text, expected) in cases {
        let outcome = Lexer::new('\\').expand(text, &variables());
        assert_eq!(outcome.map(|o| o.text), Ok(expected.to_owned()), "{text}");
    }
}

#[test]
fn wrong_texts_are_told_as_stock_tells_them() {
    for (text, reason) in [
        ("${absent:?must}", "absent: must"),
        ("${absent?}", "absent: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${", "syntax error: missing '}'"),
        ("${set", "unsupported modifier (\u{fffd}) in substitution"),
        ("${set:-x", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${set:#x}", "unsupported modifier (:#) in substitution"),
        ("${set^}", "unsupported modifier (^) in substitution"),
        ("${set/x", "syntax error: missing '/' in ${}"),
        ("${set/x/y", "syntax error: missing '}'"),
        (
            "'x",
            "unexpected end of statement while looking for matching single-quote",
        ),
        (
            "\"x",
            "unexpected end of statement while looking for matching double-quote",
        ),
        (
            "${set#\\x}",
            "invalid pattern (\\x) in substitution: invalid escape '\\x'",
        ),
    ] {
        let error = Lexer::new('\\').expand(text, &variables()).unwrap_err();
        assert_eq!(error.reason, reason, "{text}");
    }
}

#[test]
fn words_are_cut_at_unquoted_space_after_expansion() {
    for (text, expected) in [
        ("a  b", vec!["a", "b"]),
        ("'a b' c\\ d", vec!["a b", "c d"]),
        ("$x", vec!["one", "two"]),
        ("\"$x\"", vec!["one two"]),
        ("''", vec![]),
        ("cat << EOF x", vec!["cat", "<< EOF", "x"]),
    ] {
        let words = Lexer::new('\\').expand(text, &variables()).map(|o| o.words);
        assert_eq!(
            words,
            Ok(expected.iter().map(|s| (*s).to_owned()).collect()),
            "{text}"
        );
    }
}

#[test]
fn the_escape_character_can_be_a_backtick() {
    let outcome = Lexer::new('`').expand("C:\\dir `$set a`\"b", &variables());
    assert_eq!(outcome.map(|o| o.text), Ok("C:\\dir $set a\"b".to_owned()));
}

#[test]
fn unset_variables_can_stay_and_are_reported() {
    let mut lexer = Lexer::new('\\');
    lexer.skip_unset = true;
    lexer.raw_quotes = true;
    let outcome = lexer
        .expand("echo \"$no ${no:-1} $set\"", &variables())
        .unwrap();
    assert_eq!(outcome.text, "echo \"$no ${no:-1} value\"");
    assert!(outcome.unmatched.contains("no") && outcome.matched.contains("set"));
}

#[test]
fn deep_nesting_is_an_error_and_not_an_overflow() {
    let text = "${a:-".repeat(100_000);
    assert!(Lexer::new('\\').expand(&text, &NoVariables).is_err());
}
