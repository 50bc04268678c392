//! The connection for messages, which all services share: who subscribed to what, and a look now and then whether it is
//! still there.

use super::{
    end::End,
    resp::{Pipeline, Value},
    wire::{Wire, refusal},
};
use crate::registry::RegistryError;
use bytes::Bytes;
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

/// A connection over which nothing comes for two of these is gone: the other end was asked to say something.
const PING_INTERVAL: Duration = Duration::from_secs(4);
/// Messages that a slow reader may be behind. Then its subscription ends, and it reads everything again.
const BACKLOG: usize = 1024;

/// What one may subscribe to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    Channel(Bytes),
    /// Channels whose names match.
    Pattern(Bytes),
}

impl Topic {
    fn subscribe(&self, to: &mut Pipeline) {
        match self {
            Self::Channel(name) => to.add(&[b"SUBSCRIBE", &name[..]]),
            Self::Pattern(name) => to.add(&[b"PSUBSCRIBE", &name[..]]),
        }
    }

    fn unsubscribe(&self, to: &mut Pipeline) {
        match self {
            Self::Channel(name) => to.add(&[b"UNSUBSCRIBE", &name[..]]),
            Self::Pattern(name) => to.add(&[b"PUNSUBSCRIBE", &name[..]]),
        }
    }
}

/// What was published, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub channel: Bytes,
    pub payload: Bytes,
}

enum Order {
    Subscribe {
        id: u64,
        topics: Vec<Topic>,
        messages: mpsc::Sender<Message>,
        done: oneshot::Sender<Option<RegistryError>>,
    },
    Forget {
        id: u64,
    },
}

/// The way to the task that holds the connection.
#[derive(Clone)]
pub struct Events {
    orders: mpsc::UnboundedSender<Order>,
    end: End,
}

/// Messages, until it is dropped.
pub struct Subscription {
    id: u64,
    messages: mpsc::Receiver<Message>,
    orders: mpsc::UnboundedSender<Order>,
    /// What the server refused of it, if it did: an error like `NOPERM …`.
    pub refused: Option<RegistryError>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // The task may be gone.
        let _ = self.orders.send(Order::Forget { id: self.id });
    }
}

impl Subscription {
    /// The next message; `None` once some were missed.
    pub async fn next(&mut self) -> Option<Message> {
        self.messages.recv().await
    }

    /// One that is there already.
    pub fn waiting(&mut self) -> Option<Message> {
        self.messages.try_recv().ok()
    }
}

/// What holds `wire` until it breaks, and the way to it.
pub fn events(wire: Wire, end: End) -> (Events, impl Future<Output = RegistryError>) {
    let (orders, queue) = mpsc::unbounded_channel();
    (Events { orders, end: end.clone() }, serve(wire, queue, end))
}

impl Events {
    /// Returns when the server has confirmed or refused all of them: whatever is published from then on comes.
    pub async fn subscribe(&self, topics: Vec<Topic>) -> Result<Subscription, RegistryError> {
        // Enough that two do not meet.
        let id = fastrand::u64(..);
        let (messages, queue) = mpsc::channel(BACKLOG);
        let (done, answer) = oneshot::channel();
        let mut subscription = Subscription { id, messages: queue, orders: self.orders.clone(), refused: None };
        let _ = self.orders.send(Order::Subscribe { id, topics, messages, done });
        let Ok(refused) = answer.await else { return Err(self.end.reached().await) };
        subscription.refused = refused;
        Ok(subscription)
    }
}

/// A subscription that the server has not confirmed as a whole.
struct Unconfirmed {
    missing: usize,
    refused: Option<RegistryError>,
    done: oneshot::Sender<Option<RegistryError>>,
}

/// Who wants to know of a topic, by the subscription's number.
type Readers = HashMap<Topic, Vec<(u64, mpsc::Sender<Message>)>>;

async fn serve(wire: Wire, orders: mpsc::UnboundedReceiver<Order>, end: End) -> RegistryError {
    let mut readers = Readers::new();
    let error = distribute(wire, orders, &mut readers).await;
    // Before the readers see that nothing more comes.
    end.set(error.clone());
    error
}

async fn distribute(
    mut wire: Wire,
    mut orders: mpsc::UnboundedReceiver<Order>,
    readers: &mut Readers,
) -> RegistryError {
    let server = wire.server().clone();
    // The server answers in order.
    let mut unconfirmed: VecDeque<Unconfirmed> = VecDeque::new();
    let (mut ping, mut pinged) = (Instant::now() + PING_INTERVAL, false);
    loop {
        let done = tokio::select! {
            value = wire.next() => match value {
                Ok(value) => {
                    pinged = false;
                    take(value, readers, &mut unconfirmed, &server)
                }
                Err(error) => Err(error),
            },
            // The other end of it is held by whoever can use this.
            Some(order) = orders.recv() => match order {
                Order::Subscribe { id, topics, messages, done } => {
                    let mut pipeline = Pipeline::new();
                    for topic in &topics {
                        topic.subscribe(&mut pipeline);
                        readers.entry(topic.clone()).or_default().push((id, messages.clone()));
                    }
                    unconfirmed.push_back(Unconfirmed { missing: topics.len(), refused: None, done });
                    wire.send(&pipeline).await
                }
                Order::Forget { id } => wire.send(&forget(id, readers)).await,
            },
            () = sleep_until(ping) => {
                if pinged {
                    return RegistryError::Unreachable {
                        server: server.to_string(),
                        cause: format!("no answer within {PING_INTERVAL:?} on the connection for messages"),
                    };
                }
                (ping, pinged) = (Instant::now() + PING_INTERVAL.mul_f64(0.8 + 0.2 * fastrand::f64()), true);
                wire.send(&Pipeline::one(&["PING"])).await
            }
        };
        if let Err(error) = done {
            return error;
        }
    }
}

/// Removes the reader. The commands that end what nobody reads any more.
fn forget(id: u64, readers: &mut Readers) -> Pipeline {
    let mut pipeline = Pipeline::new();
    readers.retain(|topic, of_topic| {
        of_topic.retain(|(reader, _)| *reader != id);
        if of_topic.is_empty() {
            topic.unsubscribe(&mut pipeline);
        }
        !of_topic.is_empty()
    });
    pipeline
}

/// One value that the server sent.
fn take(
    value: Value,
    readers: &mut Readers,
    unconfirmed: &mut VecDeque<Unconfirmed>,
    server: &str,
) -> Result<(), RegistryError> {
    let unexpected = |cause: String| RegistryError::Protocol { server: server.into(), cause };
    let refused = match value {
        // The answer to a ping while there are no subscriptions.
        Value::Status(_) => return Ok(()),
        Value::Error(text) => Some(refusal(server, &text)),
        Value::Array(items) => match items.as_slice() {
            [kind, Value::Bulk(channel), Value::Bulk(payload)] if kind.text() == Some("message") => {
                deliver(readers, &Topic::Channel(channel.clone()), channel, payload);
                return Ok(());
            }
            [kind, Value::Bulk(pattern), Value::Bulk(channel), Value::Bulk(payload)]
                if kind.text() == Some("pmessage") =>
            {
                deliver(readers, &Topic::Pattern(pattern.clone()), channel, payload);
                return Ok(());
            }
            [kind, ..] => match kind.text() {
                Some("subscribe" | "psubscribe") => None,
                Some("unsubscribe" | "punsubscribe" | "pong") => return Ok(()),
                _ => return Err(unexpected("a message of an unknown kind".into())),
            },
            [] => return Err(unexpected("an empty message".into())),
        },
        Value::Nil | Value::Integer(_) | Value::Bulk(_) => {
            return Err(unexpected("something that is no message".into()));
        }
    };
    let Some(first) = unconfirmed.front_mut() else {
        return Err(refused.unwrap_or_else(|| unexpected("a subscription that nobody asked for".into())));
    };
    first.missing -= 1;
    first.refused = first.refused.take().or(refused);
    if first.missing == 0
        && let Some(Unconfirmed { refused, done, .. }) = unconfirmed.pop_front()
    {
        // Whoever asked may be gone.
        let _ = done.send(refused);
    }
    Ok(())
}

/// Gives it to all readers. One that is too far behind is a reader no more, from which it sees that it missed something.
fn deliver(readers: &mut Readers, topic: &Topic, channel: &Bytes, payload: &Bytes) {
    let Some(of_topic) = readers.get_mut(topic) else { return };
    let mut behind = Vec::new();
    for (id, messages) in of_topic.iter() {
        let message = Message { channel: channel.clone(), payload: payload.clone() };
        if messages.try_send(message).is_err() {
            behind.push(*id);
        }
    }
    if !behind.is_empty() {
        for of_topic in readers.values_mut() {
            of_topic.retain(|(id, _)| !behind.contains(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::Bulk(Bytes::copy_from_slice(text.as_bytes()))
    }

    fn array(texts: &[&str]) -> Value {
        Value::Array(texts.iter().map(|text| bulk(text)).collect())
    }

    fn topic(name: &str) -> Topic {
        Topic::Channel(Bytes::copy_from_slice(name.as_bytes()))
    }

    #[test]
    fn a_subscription_is_confirmed_as_a_whole_and_in_order() {
        let (mut readers, mut unconfirmed) = (Readers::new(), VecDeque::new());
        let (done, mut first) = oneshot::channel();
        unconfirmed.push_back(Unconfirmed { missing: 2, refused: None, done });
        let (done, mut second) = oneshot::channel();
        unconfirmed.push_back(Unconfirmed { missing: 1, refused: None, done });
        let confirmed = Value::Array(vec![bulk("subscribe"), bulk("a"), Value::Integer(1)]);
        take(confirmed.clone(), &mut readers, &mut unconfirmed, "s").unwrap();
        // What comes between does not count.
        for other in [array(&["pong", ""]), Value::Status("PONG".into()), array(&["message", "a", "x"])] {
            take(other, &mut readers, &mut unconfirmed, "s").unwrap();
        }
        let left = Value::Array(vec![bulk("unsubscribe"), bulk("b"), Value::Integer(1)]);
        take(left, &mut readers, &mut unconfirmed, "s").unwrap();
        assert!(first.try_recv().is_err());
        let refusal = Value::Error("NOPERM this user has no permissions".into());
        take(refusal, &mut readers, &mut unconfirmed, "s").unwrap();
        assert!(first.try_recv().unwrap().unwrap().to_string().contains("NOPERM"));
        take(confirmed.clone(), &mut readers, &mut unconfirmed, "s").unwrap();
        assert!(second.try_recv().unwrap().is_none());
        assert!(take(confirmed, &mut readers, &mut unconfirmed, "s").is_err(), "nobody asked for this one");
    }

    #[test]
    fn nonsense_ends_the_connection() {
        for value in [Value::Nil, bulk("x"), Value::Integer(1), array(&[]), array(&["x", "y"]), array(&["message"])] {
            let shown = format!("{value:?}");
            assert!(take(value, &mut Readers::new(), &mut VecDeque::new(), "s").is_err(), "{shown}");
        }
        let error = take(Value::Error("NOAUTH x".into()), &mut Readers::new(), &mut VecDeque::new(), "s").unwrap_err();
        assert!(matches!(error, RegistryError::Refused { .. }));
    }

    #[test]
    fn who_is_too_far_behind_hears_nothing_more_and_the_others_do() {
        let mut readers = Readers::new();
        let ((slow, mut of_slow), (quick, mut of_quick)) = (mpsc::channel(2), mpsc::channel(10));
        for name in ["a", "b"] {
            readers.insert(topic(name), vec![(1, slow.clone()), (2, quick.clone())]);
        }
        drop((slow, quick));
        for _ in 0..3 {
            take(array(&["message", "a", "x"]), &mut readers, &mut VecDeque::new(), "s").unwrap();
        }
        take(array(&["message", "b", "y"]), &mut readers, &mut VecDeque::new(), "s").unwrap();
        assert_eq!((of_slow.try_recv().is_ok(), of_slow.try_recv().is_ok()), (true, true));
        assert_eq!(of_slow.try_recv(), Err(mpsc::error::TryRecvError::Disconnected), "and so it knows");
        assert_eq!(of_quick.len(), 4);
        assert_eq!(of_quick.try_recv().unwrap(), Message { channel: "a".into(), payload: "x".into() });
        // Who goes takes along what only he wanted to know.
        readers.insert(topic("c"), readers[&topic("b")].clone());
        assert_eq!(forget(1, &mut readers).commands(), 0);
        assert_eq!((forget(2, &mut readers).commands(), readers.len()), (3, 0));
    }
}
