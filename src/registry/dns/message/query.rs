//! The other side: questions that others ask, and what they are answered.

use super::{HEADER, INTERNET, Malformed, Reader, Type, UDP_SIZE};
use crate::registry::dns::answer::{FORMAT_ERROR, NO_ERROR, NOT_IMPLEMENTED};
use std::net::IpAddr;

const IS_ANSWER: u16 = 0x8000;
const OPERATION: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;

/// Zone transfers: IXFR and AXFR.
const TRANSFERS: [u16; 2] = [251, 252];
/// The type and the class that stand for all.
const ANY: u16 = 255;

/// A question as it came.
#[derive(Debug, Clone)]
pub struct Query<'b> {
    pub bytes: &'b [u8],
    flags: u16,
    /// As in [`Record::name`](super::Record::name), but in the case that it was written in.
    pub name: String,
    pub of: u16,
    pub class: u16,
    /// Where the question ends.
    end: usize,
    has_edns: bool,
}

/// What is no question that can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// It is to be ignored: no message, or an answer, and answers to answers would go to and fro.
    Nothing,
    /// Its sender is to be told so, with this code.
    Refused(u16),
}

impl From<Malformed> for Unread {
    fn from(_: Malformed) -> Self {
        Self::Refused(FORMAT_ERROR)
    }
}

impl<'b> Query<'b> {
    /// Reads a question. Every byte of it may be a stranger's.
    pub fn read(bytes: &'b [u8]) -> Result<Self, Unread> {
        let mut reader = Reader { bytes, at: 2 };
        let flags = reader.u16().map_err(|_| Unread::Nothing)?;
        if bytes.len() < HEADER || flags & IS_ANSWER != 0 {
            return Err(Unread::Nothing);
        }
        if flags & OPERATION != 0 {
            return Err(Unread::Refused(NOT_IMPLEMENTED));
        }
        let [questions, answers, authorities, additionals] =
            [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
        if questions != 1 {
            return Err(Unread::Refused(FORMAT_ERROR));
        }
        let name = reader.name_with(|byte| byte)?;
        let (of, class) = (reader.u16()?, reader.u16()?);
        let end = reader.at;
        if TRANSFERS.contains(&of) {
            return Err(Unread::Refused(NOT_IMPLEMENTED));
        }
        let mut has_edns = false;
        for _ in 0..u32::from(answers) + u32::from(authorities) + u32::from(additionals) {
            has_edns |= reader.is_edns()?;
        }
        Ok(Self { bytes, flags, name, of, class, end, has_edns })
    }

    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.bytes[0], self.bytes[1]])
    }

    pub fn is_of_internet(&self) -> bool {
        self.class == INTERNET
    }

    /// Whether it asks for addresses of that family.
    pub fn asks_for(&self, of: Type) -> bool {
        self.of == of as u16 || self.of == ANY
    }

    /// An answer with these addresses, or with none. `room`: what it may have at most; beyond that its reader has to ask over TCP.
    pub fn answer(&self, code: u16, addresses: &[IpAddr], ttl: u32, room: usize) -> Vec<u8> {
        let whole = self.answer_with(code, addresses, ttl, 0);
        if whole.len() <= room { whole } else { self.answer_with(code, &[], ttl, TRUNCATED) }
    }

    fn answer_with(&self, code: u16, addresses: &[IpAddr], ttl: u32, flags: u16) -> Vec<u8> {
        let kept = self.flags & RECURSION_DESIRED;
        let flags = IS_ANSWER | AUTHORITATIVE | RECURSION_AVAILABLE | kept | flags | code;
        // As many as fit into a message are far fewer than that.
        let count = u16::try_from(addresses.len()).unwrap_or(u16::MAX);
        let mut bytes = Vec::with_capacity(self.end + 28 * addresses.len() + 11);
        for field in [self.id(), flags, 1, count, 0, u16::from(self.has_edns)] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend(&self.bytes[HEADER..self.end]);
        for ip in addresses.iter().take(usize::from(count)) {
            let (of, data): (_, &[u8]) = match ip {
                IpAddr::V4(ip) => (Type::A, &ip.octets()),
                IpAddr::V6(ip) => (Type::Aaaa, &ip.octets()),
            };
            // The name is that of the question.
            bytes.extend([0xC0, HEADER as u8]);
            bytes.extend((of as u16).to_be_bytes());
            bytes.extend(INTERNET.to_be_bytes());
            bytes.extend(ttl.to_be_bytes());
            bytes.extend((data.len() as u16).to_be_bytes());
            bytes.extend(data);
        }
        if self.has_edns {
            bytes.push(0);
            bytes.extend((Type::Opt as u16).to_be_bytes());
            bytes.extend(UDP_SIZE.to_be_bytes());
            bytes.extend([0; 6]);
        }
        bytes
    }

    /// Whether `bytes` answer this question, asked with that id: so much of them that nobody else's answer is taken for it.
    pub fn is_answered_by(&self, bytes: &[u8], id: u16) -> bool {
        let mut reader = Reader { bytes, at: 0 };
        let mut is_answer = || -> Result<bool, Malformed> {
            let (found, flags, questions) = (reader.u16()?, reader.u16()?, reader.u16()?);
            reader.take(6)?;
            if found != id || flags & IS_ANSWER == 0 {
                return Ok(false);
            }
            // Who did not understand the question may leave it out.
            if questions == 0 {
                return Ok(flags & 0xF != NO_ERROR);
            }
            let asked = &self.bytes[HEADER..self.end];
            Ok(questions == 1 && reader.take(asked.len())?.eq_ignore_ascii_case(asked))
        };
        is_answer().unwrap_or(false)
    }
}

impl Reader<'_> {
    /// Passes over a record, and tells whether it is EDNS's.
    fn is_edns(&mut self) -> Result<bool, Malformed> {
        self.name()?;
        let of = self.u16()?;
        self.take(6)?;
        let length = self.u16()?;
        self.take(length.into())?;
        Ok(of == Type::Opt as u16)
    }
}

/// The answer to a question that was not understood: its header.
pub fn refusal(bytes: &[u8], code: u16) -> Option<Vec<u8>> {
    let [a, b, c, d, ..] = *bytes else { return None };
    let asked = u16::from_be_bytes([c, d]);
    let flags = IS_ANSWER | asked & (OPERATION | RECURSION_DESIRED) | RECURSION_AVAILABLE | code;
    let mut answer = vec![a, b];
    answer.extend(flags.to_be_bytes());
    answer.resize(HEADER, 0);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Data, Question, query, read},
        *,
    };
    use proptest::{collection::vec, prelude::*, sample::Index};

    fn asked(name: &str, of: Type) -> Vec<u8> {
        query(7, &Question::new(name, of).unwrap(), true)
    }

    #[test]
    fn an_answer_has_the_question_as_it_was_written() {
        let bytes = asked("User-Service.MESH", Type::A);
        let query = Query::read(&bytes).unwrap();
        assert_eq!((query.name.as_str(), query.id(), query.is_of_internet()), ("User-Service.MESH", 7, true));
        assert!(query.asks_for(Type::A) && !query.asks_for(Type::Aaaa));
        let ips: [IpAddr; 2] = ["240.1.2.3".parse().unwrap(), "fd00::7".parse().unwrap()];
        let answer = query.answer(NO_ERROR, &ips, 10, 512);
        assert_eq!(&answer[HEADER..query.end], &bytes[HEADER..query.end]);
        assert!(query.is_answered_by(&answer, 7) && !query.is_answered_by(&answer, 8));
        let message = read(&answer).unwrap();
        assert_eq!((message.id, message.code, message.informed, message.truncated), (7, NO_ERROR, true, false));
        let found: Vec<_> = message.answers.iter().map(|record| (record.ttl, record.data.address().unwrap())).collect();
        assert_eq!(found, ips.map(|ip| (10, ip)));
        assert_eq!(message.answers[0].name, "user-service.mesh");
        assert_eq!(message.additionals.len(), 1, "EDNS is answered");
        assert!(message.additionals.iter().all(|record| record.data == Data::Other));
        let cut = read(&query.answer(NO_ERROR, &ips, 10, 60)).unwrap();
        assert!(cut.truncated && cut.question.is_some());
        let nothing = read(&query.answer(3, &[], 10, 512)).unwrap();
        assert_eq!((nothing.code, nothing.answers.len()), (3, 0));
    }

    #[test]
    fn what_is_no_question_is_told_so_or_ignored() {
        let good = asked("a.mesh", Type::A);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Query::read(&bytes).map(|query| query.name)
        };
        assert_eq!(with(2, 0x80), Err(Unread::Nothing), "an answer");
        assert_eq!(with(2, 0x28), Err(Unread::Refused(NOT_IMPLEMENTED)), "an update");
        assert_eq!(with(5, 2), Err(Unread::Refused(FORMAT_ERROR)), "two questions");
        assert_eq!(with(5, 0), Err(Unread::Refused(FORMAT_ERROR)), "none");
        assert_eq!(with(11, 2), Err(Unread::Refused(FORMAT_ERROR)), "fewer records than it says");
        assert_eq!(with(12, 0xC0), Err(Unread::Refused(FORMAT_ERROR)), "a name that goes on in the header");
        assert_eq!(with(good.len() - 11 - 3, 252), Err(Unread::Refused(NOT_IMPLEMENTED)), "a zone transfer");
        for end in 0..good.len() {
            let found = Query::read(&good[..end]).map(|query| query.name).unwrap_err();
            assert_eq!(found, if end < HEADER { Unread::Nothing } else { Unread::Refused(FORMAT_ERROR) }, "{end}");
        }
        let refused = refusal(&good, FORMAT_ERROR).unwrap();
        assert_eq!(refused, [0, 7, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(refusal(&[0, 7, 1], FORMAT_ERROR), None);
        assert!(Query::read(&good).unwrap().is_answered_by(&refused, 7), "it may leave the question out");
    }

    #[test]
    fn only_an_answer_to_this_question_is_one() {
        let (bytes, other) = (asked("a.mesh", Type::A), asked("b.mesh", Type::A));
        let (query, other) = (Query::read(&bytes).unwrap(), Query::read(&other).unwrap());
        assert!(!query.is_answered_by(&other.answer(NO_ERROR, &[], 0, 512), 7));
        assert!(!query.is_answered_by(&bytes, 7), "a question");
        assert!(!query.is_answered_by(&[], 7));
        let whole = query.answer(NO_ERROR, &[], 0, 512);
        assert!(!query.is_answered_by(&whole[..20], 7));
        let upper = whole.to_ascii_uppercase();
        assert!(query.is_answered_by(&upper, 7), "in any case");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_answered_with_what_can_be_read(
            bytes in vec(any::<u8>(), 0..80),
            changes in vec((any::<Index>(), any::<u8>()), 0..4),
        ) {
            let mut good = asked("user-service.mesh", Type::A);
            changes.iter().for_each(|(at, byte)| *at.get_mut(&mut good) = *byte);
            for bytes in [bytes, good] {
                match Query::read(&bytes) {
                    Ok(query) => {
                        let answer = query.answer(NO_ERROR, &["240.0.0.1".parse().unwrap()], 10, 512);
                        prop_assert!(query.is_answered_by(&answer, query.id()));
                        let message = read(&answer).unwrap();
                        prop_assert_eq!((message.id, message.answers.len()), (query.id(), 1));
                    }
                    Err(Unread::Refused(code)) => prop_assert_eq!(read(&refusal(&bytes, code).unwrap()).unwrap().code, code),
                    Err(Unread::Nothing) => prop_assert!(bytes.len() < HEADER || bytes[2] & 0x80 != 0),
                }
            }
        }
    }
}
