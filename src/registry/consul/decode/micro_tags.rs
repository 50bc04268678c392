//! What go-micro packs into Consul's tags: `t-` metadata, `v-` version, `e-` endpoints, each hex of zlib; its older
//! versions wrote `t=`, `v=` and `e=` with the text as it is.

use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use std::collections::BTreeMap;

/// Nothing that is worth a label is longer; and a tag must not be able to fill the memory.
const LONGEST: usize = 64 << 10;

/// The version in a `v` tag.
pub fn version(tag: &str) -> Option<String> {
    unpacked(tag, 'v')
}

/// The metadata in a `t` tag; usually one pair.
pub fn metadata(tag: &str) -> Option<BTreeMap<String, String>> {
    serde_json::from_str(&unpacked(tag, 't')?).ok()
}

/// Whether it is an `e` tag: a description of a method, of no use to a proxy.
pub fn is_endpoint(tag: &str) -> bool {
    unpacked(tag, 'e').is_some_and(|text| text.starts_with('{'))
}

fn unpacked(tag: &str, kind: char) -> Option<String> {
    let rest = tag.strip_prefix(kind)?;
    if let Some(text) = rest.strip_prefix('=') {
        return Some(text.to_owned());
    }
    let packed = unhex(rest.strip_prefix('-')?)?;
    String::from_utf8(decompress_to_vec_zlib_with_limit(&packed, LONGEST).ok()?).ok()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if text.is_empty() || !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}
