//! The one file that an answer in gzip holds (RFC 1952).

use miniz_oxide::inflate::decompress_to_vec_with_limit;

const HEADER: usize = 10;
/// A checksum and the length.
const TRAILER: usize = 8;
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

// What the header may have more.
const CHECKSUM: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;

/// What `packed` unpacks to, if that is not larger than `limit`. The checksum is left alone: what it is of is read with
/// care anyway.
pub fn unpack(packed: &[u8], limit: usize) -> Result<Vec<u8>, &'static str> {
    let deflated = body(packed).ok_or("its gzip has no proper header")?;
    let (deflated, trailer) =
        deflated.split_at_checked(deflated.len().wrapping_sub(TRAILER)).ok_or("its gzip is cut off")?;
    let text = decompress_to_vec_with_limit(deflated, limit).map_err(|_| "its gzip is broken, or too much")?;
    let length = u32::from_le_bytes([trailer[4], trailer[5], trailer[6], trailer[7]]);
    if u32::try_from(text.len()) == Ok(length) { Ok(text) } else { Err("its gzip is not of the length that it says") }
}

/// What comes after the header.
fn body(packed: &[u8]) -> Option<&[u8]> {
    let (header, mut rest) = packed.split_at_checked(HEADER)?;
    if header[..3] != MAGIC {
        return None;
    }
    let flags = header[3];
    if flags & EXTRA != 0 {
        let (length, after) = rest.split_at_checked(2)?;
        rest = after.get(usize::from(u16::from_le_bytes([length[0], length[1]]))..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            rest = &rest[memchr::memchr(0, rest)? + 1..];
        }
    }
    if flags & CHECKSUM != 0 { rest.get(2..) } else { Some(rest) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use miniz_oxide::deflate::compress_to_vec;
    use proptest::prelude::*;

    fn packed(flags: u8, more: &[u8], text: &[u8]) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_le_bytes();
        let header = [&MAGIC[..], &[flags], &[0; 6], more].concat();
        [&header[..], &compress_to_vec(text, 6), &[0; 4], &length].concat()
    }

    #[test]
    fn whatever_the_header_has() {
        let text = br#"{"applications":{}}"#;
        for (flags, more) in [
            (0, &b""[..]),
            (EXTRA, b"\x03\x00abc"),
            (NAME, b"name\0"),
            (NAME | COMMENT, b"name\0comment\0"),
            (EXTRA | NAME | CHECKSUM, b"\x01\x00anb\0cc"),
        ] {
            assert_eq!(unpack(&packed(flags, more, text), 100).unwrap(), text, "{flags}");
        }
    }

    #[test]
    fn what_is_cut_off_wrong_or_too_much_is_refused() {
        let text = vec![b'a'; 1000];
        let whole = packed(0, b"", &text);
        assert!(unpack(&whole, 1000).is_ok());
        assert!(unpack(&whole, 999).is_err());
        for end in 0..whole.len() {
            assert!(unpack(&whole[..end], 1000).is_err(), "{end}");
        }
        assert!(unpack(b"{}", 10).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(flags in any::<u8>(), more in any::<Vec<u8>>(), cut in 0..60usize) {
            let mut bytes = packed(flags, &more, b"{}");
            let _ = unpack(&bytes, 1000);
            bytes.truncate(cut);
            let _ = unpack(&bytes, 1000);
            let _ = unpack(&more, 1000);
        }
    }
}
