//! Configurations from anywhere: none makes the reader panic, and what it says of keys names lines
//! that are there.

use server::config::Config;
use testkit::{CountingAllocator, Fuzz};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

#[test]
fn any_text_is_a_configuration_or_an_error() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/toml");
    Fuzz::new(corpus, 3000).run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let Ok((_, remarks)) = Config::parse(&text, "fuzz.toml") else {
            return;
        };
        for remark in remarks {
            assert!(remark.line <= text.lines().count().max(1));
            assert!(remark.to_string().starts_with("fuzz.toml:"));
        }
    });
}
