//! Patterns over paths. Knows no files.

/// The characters that make a path a pattern.
pub(crate) const SPECIAL: [char; 2] = ['*', '?'];

/// The leading segments of a path in which there is nothing special.
pub(crate) fn fixed(pattern: &str) -> &str {
    match pattern.find(SPECIAL) {
        Some(at) => pattern[..at].rfind('/').map_or("", |slash| &pattern[..slash]),
        None => pattern,
    }
}

/// Whether a path matches a pattern: `?` is one character, `*` any number within a path segment,
/// `**` any number of segments.
pub(crate) fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', b'/', rest @ ..] => {
            matches(rest, path) || path.iter().enumerate().any(|(i, c)| *c == b'/' && matches(rest, &path[i + 1..]))
        }
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|i| matches(rest, &path[i..])),
        [b'*', rest @ ..] => {
            let end = path.iter().position(|c| *c == b'/').unwrap_or(path.len());
            (0..=end).any(|i| matches(rest, &path[i..]))
        }
        [b'?', rest @ ..] => path.first().is_some_and(|c| *c != b'/') && matches(rest, &path[1..]),
        [c, rest @ ..] => path.first() == Some(c) && matches(rest, &path[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_segments() {
        for (pattern, path, want) in [
            ("/a/*.parquet", "/a/b.parquet", true),
            ("/a/*.parquet", "/a/b/c.parquet", false),
            ("/a/**/*.parquet", "/a/b/c.parquet", true),
            ("/a/**/*.parquet", "/a/c.parquet", true),
            ("/a/part-?.parquet", "/a/part-1.parquet", true),
            ("/a/part-?.parquet", "/a/part-10.parquet", false),
            ("/a/*", "/a/", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), want, "{pattern} {path}");
        }
        for (pattern, want) in [("/a/b/*.parquet", "/a/b"), ("a/b*/c", "a"), ("*.parquet", ""), ("/*/x", "")] {
            assert_eq!(fixed(pattern), want, "{pattern}");
        }
    }
}
