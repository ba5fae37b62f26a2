//! Which BuildKit is inside a Docker Engine too old to tell.

/// The version of BuildKit vendored by that release of the Engine, for releases up to 23; newer
/// ones answer `Control.Info`.
pub(crate) fn buildkit_of_engine(engine: &str) -> Option<&'static str> {
    let numbers = engine.trim_start_matches('v');
    let numbers = numbers.split(['-', '+', '~']).next()?;
    let mut parts = numbers.split('.').map(|part| part.parse::<u32>().ok());
    let (major, minor) = (parts.next()??, parts.next()??);
    let patch = parts.next().flatten().unwrap_or(0);
    Some(match (major, minor, patch) {
        (20, 10, 0..=2) => "v0.8.1",
        (20, 10, 3) => "v0.8.1+68bb095",
        (20, 10, 4..=6) => "v0.8.2",
        (20, 10, 7..=10) => "v0.8.2+244e8cde",
        (20, 10, 11..=18) => "v0.8.2+bc07b2b8",
        (20, 10, 19) => "v0.8.2+3a1eeca5",
        (20, 10, 20) => "v0.8.2+c0149372",
        (20, 10, 21..=23) => "v0.8.2+eeb7b65",
        (20, 10, _) => "v0.8+unknown",
        (22, 6, _) => "v0.10.3",
        (23, 0, 0) => "v0.10.6",
        (23, 0, 1) => "v0.10.6+4f0ee09",
        (23, 0, 2..=3) => "v0.10.6+70f2ad5",
        (23, 0, 4..=6) => "v0.10.6+d52b2d5",
        (23, ..) => "v0.10+unknown",
        (19, 3, _) => "v0.6.4",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_known_by_their_release_whatever_the_packager_appended() {
        assert_eq!(buildkit_of_engine("20.10.24+dfsg1"), Some("v0.8+unknown"));
        assert_eq!(buildkit_of_engine("20.10.21"), Some("v0.8.2+eeb7b65"));
        assert_eq!(buildkit_of_engine("28.5.0"), None);
        assert_eq!(buildkit_of_engine("dev"), None);
    }
}
