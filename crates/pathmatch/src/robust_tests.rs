//! Any text is a pattern or refused, and any path can be asked about: nothing panics.

use proptest::prelude::*;

use crate::{PatternMatcher, clean_path};

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
