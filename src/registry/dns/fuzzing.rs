//! For the target `dns` of `fuzz/`.

use super::{
    answer::{self, Finding},
    message::{self, Data, Question, Srv, Type},
};
use crate::registry::Instance;

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
