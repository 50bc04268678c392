//! Which version of HTTP a client speaks, from the first bytes it sends.

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113, section 3.4).
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    Http1,
    Http2,
    /// All bytes so far fit both; more are needed. A first segment may be as short as one byte.
    Unsure,
}

pub fn detect(start: &[u8]) -> Detected {
    let known = start.len().min(H2_PREFACE.len());
    if start[..known] != H2_PREFACE[..known] {
        Detected::Http1
    } else if known == H2_PREFACE.len() {
        Detected::Http2
    } else {
        Detected::Unsure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_of_the_preface_waits_for_more() {
        for length in 0..H2_PREFACE.len() {
            assert_eq!(detect(&H2_PREFACE[..length]), Detected::Unsure);
        }
        assert_eq!(detect(H2_PREFACE), Detected::Http2);
        assert_eq!(detect(&[H2_PREFACE, b"more"].concat()), Detected::Http2);
    }

    #[test]
    fn the_first_byte_that_differs_decides_for_http1() {
        for start in ["G", "PO", "PR ", "PRI /", "PRI * HTTP/1.1\r\n"] {
            assert_eq!(detect(start.as_bytes()), Detected::Http1, "{start}");
        }
    }
}
