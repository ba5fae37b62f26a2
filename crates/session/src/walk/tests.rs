use std::fs;

use super::*;

fn paths(root: &Path, options: WalkOptions) -> Vec<String> {
    let mut walker = Walker::new(root, options).unwrap();
    let mut paths = Vec::new();
    while let Some(entry) = walker.next_entry().unwrap() {
        if entry.wanted {
            paths.push(String::from_utf8(entry.stat.path).unwrap());
        }
    }
    paths
}

#[test]
fn entries_come_sorted_with_parents_first() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["b/c/d", "b-x", "a", "b/a"] {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    assert_eq!(
        paths(dir.path(), WalkOptions::default()),
        ["a", "b", "b/a", "b/c", "b/c/d", "b-x"]
    );
}

#[test]
fn a_wide_tree_comes_in_the_same_order_with_helpers() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for outer in 0..40 {
        expected.push(format!("{outer:02}"));
        for inner in 0..10 {
            let path = format!("{outer:02}/{inner}");
            fs::create_dir_all(dir.path().join(&path)).unwrap();
            expected.push(path.clone());
            for file in 0..3 {
                let path = format!("{path}/{file}");
                fs::write(dir.path().join(&path), "").unwrap();
                expected.push(path);
            }
        }
    }
    assert_eq!(paths(dir.path(), WalkOptions::default()), expected);
}

#[test]
fn a_skipped_directory_gives_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    fs::write(dir.path().join("c"), "").unwrap();
    let mut walker = Walker::new(dir.path(), WalkOptions::default()).unwrap();
    assert_eq!(walker.next_entry().unwrap().unwrap().stat.path, b"a");
    walker.skip_directory();
    assert_eq!(walker.next_entry().unwrap().unwrap().stat.path, b"c");
    assert!(walker.next_entry().unwrap().is_none());
}

#[test]
fn later_names_of_a_file_point_at_the_first() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "xyz").unwrap();
    fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    let mut walker = Walker::new(dir.path(), WalkOptions::default()).unwrap();
    let mut links = HardLinks::default();
    let mut stats = Vec::new();
    while let Some(mut entry) = walker.next_entry().unwrap() {
        links.mark(&mut entry);
        stats.push((entry.stat.size, entry.stat.linkname));
    }
    assert_eq!(stats, [(3, Vec::new()), (0, b"a".to_vec())]);
}

#[test]
fn a_missing_root_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("x");
    let error = Walker::new(&missing, WalkOptions::default());
    let text = error.err().unwrap().to_string();
    let expected = format!("open {}: no such file or directory", missing.display());
    assert_eq!(text, expected);
}
