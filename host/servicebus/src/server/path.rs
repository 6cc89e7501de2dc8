//! Which operation a method and a path ask for.

use http::Method;
use percent_encoding::percent_decode_str;

/// Longest path of an entity, in characters: the service's own limit.
const ENTITY_CHARS_MAX: usize = 260;

/// What a path names. Segments are compared whatever their case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `{entity}/messages`
    Messages(Entity),
    /// `{entity}/messages/head`
    Head(Entity),
    /// `{entity}/messages/{id or sequence number}/{lock token}`
    Locked(Entity, String, String),
    /// `{entity}`
    Entity(String),
    /// `$Resources/Queues`
    Queues,
    /// `$namespaceinfo`
    Namespace,
}

/// A queue, or its dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entity {
    /// The queue's name.
    pub queue: String,
    /// True for `{queue}/$DeadLetterQueue`.
    pub is_dead: bool,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Runtime(Entity, Runtime),
    Management(Management),
}

/// An operation on messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtime {
    Send,
    PeekLock,
    ReceiveAndDelete,
    Complete(Locked),
    Unlock(Locked),
    Renew(Locked),
}

/// A locked message, as a settling request names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    /// A sequence number or a message id.
    pub message: String,
    /// The lock's token.
    pub token: String,
}

/// An operation on queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Management {
    Put(String),
    Get(String),
    Delete(String),
    List,
    Namespace,
}

impl Target {
    /// Reads a request's path; none when it names nothing.
    pub fn read(path: &str) -> Option<Self> {
        let segments: Vec<String> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(|segment| Some(percent_decode_str(segment).decode_utf8().ok()?.into_owned()))
            .collect::<Option<_>>()?;
        let is = |at: usize, name: &str| {
            segments
                .get(at)
                .is_some_and(|segment| segment.eq_ignore_ascii_case(name))
        };
        if is(0, "$Resources") {
            return (is(1, "Queues") && segments.len() == 2).then_some(Self::Queues);
        }
        if is(0, "$namespaceinfo") {
            return (segments.len() == 1).then_some(Self::Namespace);
        }
        // The last one: a queue may be called `messages`, too.
        let messages = segments
            .iter()
            .rposition(|segment| segment.eq_ignore_ascii_case("messages"))
            .filter(|at| *at > 0);
        match (messages, &segments[..]) {
            (_, []) => None,
            (Some(at), all) => {
                let entity = entity(&all[..at])?;
                match &all[at + 1..] {
                    [] => Some(Self::Messages(entity)),
                    [head] if head.eq_ignore_ascii_case("head") => Some(Self::Head(entity)),
                    [message, token] => Some(Self::Locked(entity, message.clone(), token.clone())),
                    _ => None,
                }
            }
            (None, all) => {
                let name = all.join("/");
                (name.chars().count() <= ENTITY_CHARS_MAX).then_some(Self::Entity(name))
            }
        }
    }
}

fn entity(segments: &[String]) -> Option<Entity> {
    let is_dead = segments
        .last()
        .is_some_and(|last| last.eq_ignore_ascii_case("$DeadLetterQueue"));
    let queue = segments[..segments.len() - usize::from(is_dead)].join("/");
    (1..=ENTITY_CHARS_MAX)
        .contains(&queue.chars().count())
        .then_some(Entity { queue, is_dead })
}

impl Operation {
    /// The operation; none when the method is not one for the target.
    pub fn of(method: &Method, target: &Target) -> Option<Self> {
        if !super::is_known_method(method) {
            return None;
        }
        let locked = |message: &String, token: &String| Locked {
            message: message.clone(),
            token: token.clone(),
        };
        Some(match (method.as_str(), target) {
            // Nothing can be sent to dead letters.
            ("POST", Target::Messages(entity)) if !entity.is_dead => {
                Self::Runtime(entity.clone(), Runtime::Send)
            }
            ("POST", Target::Head(entity)) => Self::Runtime(entity.clone(), Runtime::PeekLock),
            ("DELETE", Target::Head(entity)) => {
                Self::Runtime(entity.clone(), Runtime::ReceiveAndDelete)
            }
            ("DELETE", Target::Locked(entity, message, token)) => {
                Self::Runtime(entity.clone(), Runtime::Complete(locked(message, token)))
            }
            ("PUT", Target::Locked(entity, message, token)) => {
                Self::Runtime(entity.clone(), Runtime::Unlock(locked(message, token)))
            }
            ("POST", Target::Locked(entity, message, token)) => {
                Self::Runtime(entity.clone(), Runtime::Renew(locked(message, token)))
            }
            ("PUT", Target::Entity(name)) => Self::Management(Management::Put(name.clone())),
            ("GET", Target::Entity(name)) => Self::Management(Management::Get(name.clone())),
            ("DELETE", Target::Entity(name)) => Self::Management(Management::Delete(name.clone())),
            ("GET", Target::Queues) => Self::Management(Management::List),
            ("GET", Target::Namespace) => Self::Management(Management::Namespace),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(queue: &str, is_dead: bool) -> Entity {
        Entity {
            queue: queue.to_owned(),
            is_dead,
        }
    }

    #[test]
    fn paths_are_read_whatever_their_case() {
        assert_eq!(
            Target::read("/q/Messages/Head"),
            Some(Target::Head(entity("q", false)))
        );
        assert_eq!(
            Target::read("/a/b/$deadletterqueue/messages/head"),
            Some(Target::Head(entity("a/b", true)))
        );
        assert_eq!(
            Target::read("/q/messages/7/0a"),
            Some(Target::Locked(
                entity("q", false),
                "7".to_owned(),
                "0a".to_owned()
            ))
        );
        assert_eq!(
            Target::read("/q/messages/a%2Fb/0a"),
            Some(Target::Locked(
                entity("q", false),
                "a/b".to_owned(),
                "0a".to_owned()
            ))
        );
        assert_eq!(Target::read("/$Resources/queues"), Some(Target::Queues));
        assert_eq!(
            Target::read("/messages"),
            Some(Target::Entity("messages".to_owned()))
        );
        assert_eq!(Target::read("//"), None);
        assert_eq!(Target::read("/q/messages/1/2/3"), None);
        assert_eq!(Target::read(&format!("/{}", "x".repeat(261))), None);
    }

    #[test]
    fn nothing_is_sent_to_dead_letters() {
        let dead = Target::Messages(entity("q", true));
        assert_eq!(Operation::of(&Method::POST, &dead), None);
        let alive = Target::Messages(entity("q", false));
        assert!(Operation::of(&Method::POST, &alive).is_some());
        assert_eq!(Operation::of(&Method::PATCH, &alive), None);
    }
}
