//! Any text is a pattern or refused, and any path can be asked about: nothing panics.

use proptest::prelude::*;

use crate::{PatternMatcher, clean_path};

#[test]
fn long_patterns_paths_and_lists_are_matched_in_one_pass() {
    // Squared, any of these would not end while somebody waits.
    let path = "a/".repeat(2_000) + "b";
    for pattern in ["**/", "*/", "a*", "**/a/", "?", "[a-b]"] {
        let matcher = PatternMatcher::new(&[pattern.repeat(200) + "c"]).unwrap();
        assert!(!matcher.matches(path.as_bytes()), "{pattern}");
    }
    let list: Vec<String> = (0..5_000).map(|number| format!("!x/{number}/**")).collect();
    let matcher = PatternMatcher::new(&list).unwrap();
    assert!(!matcher.matches(b"x/4999/y/z"));
}

proptest! {
    #[test]
    fn any_pattern_matches_or_is_refused(pattern in "[a-c*?/!\\[\\]^\\\\.-]{0,12}", path in "[a-c/.]{0,12}") {
        if let Ok(matcher) = PatternMatcher::new(&[pattern]) {
            matcher.matches(path.as_bytes());
        }
    }

    #[test]
    fn cleaning_a_path_twice_changes_nothing(path in "[a./]{0,20}") {
        let once = clean_path(&path);
        prop_assert_eq!(clean_path(&once), once);
    }
}
