//! For the target `dns` of `fuzz/`.

use super::{
    answer::{self, Finding},
    message::{self, Data, Query, Question, Srv, Type, Unread},
};
use crate::registry::Instance;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an answer gives, whatever was asked for; `None` if it is no answer.
pub fn instances(message: &[u8]) -> Option<Vec<Instance>> {
    let message = message::read(message).ok()?;
    let (name, _) = message.question.as_ref()?;
    let mut instances = Vec::new();
    for of in [Type::A, Type::Aaaa, Type::Srv] {
        let question = Question::new(name, of).ok()?;
        assert_eq!(message::read(&message::query(message.id, &question, true)).ok(), None, "it is a question");
        let Finding::Records { data, .. } = answer::finding(&message, &question) else { continue };
        let addresses: Vec<_> = data.iter().filter_map(|data| data.address()).collect();
        instances.extend(answer::plain_instances(&addresses, 80).0);
        let srv = |data: &Data| if let Data::Srv(srv) = data { Some(srv.clone()) } else { None };
        let at = |srv: Srv| Some((answer::addresses(&message.additionals, &srv.target)?.0, srv));
        let targets: Vec<_> = data.into_iter().filter_map(srv).filter_map(at).map(|(at, srv)| (srv, at)).collect();
        instances.extend(answer::srv_instances(&targets).0);
    }
    Some(instances)
}

/// What a question is answered must be an answer to it, whatever the question is. `None` if it is no question.
pub fn answers(question: &[u8]) -> Option<()> {
    let query = match Query::read(question) {
        Ok(query) => query,
        Err(Unread::Nothing) => return None,
        Err(Unread::Refused(code)) => {
            let refusal = message::refusal(question, code).expect("it has a header");
            assert_eq!(message::read(&refusal).map(|message| message.code), Ok(code));
            return None;
        }
    };
    for addresses in [&[][..], &[IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]] {
        let answer = query.answer(0, addresses, 10, 512);
        assert!(query.is_answered_by(&answer, query.id()));
        let message = message::read(&answer).expect("it is a message");
        assert_eq!((message.id, message.answers.len()), (query.id(), addresses.len()));
    }
    let _ = query.is_answered_by(question, query.id());
    Some(())
}
