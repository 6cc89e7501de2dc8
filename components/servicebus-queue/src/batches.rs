//! Messages that go out in one request.

use orchestrator_servicebus::sending::{self, Item, SendRequest};

/// A message, ready to be sent, and its place among those of one call.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its place.
    pub place: usize,
    /// The queue it goes to.
    pub queue: String,
    /// What is sent.
    pub item: Item,
}

/// Puts messages for one queue together, in their order, as far as they may be.
pub fn batches(messages: Vec<Ready>) -> Vec<Vec<Ready>> {
    let mut batches: Vec<Vec<Ready>> = Vec::new();
    for ready in messages {
        // The last batch of its queue: an earlier one would change the order.
        let open = batches
            .iter_mut()
            .rfind(|batch| batch[0].queue == ready.queue)
            .filter(|batch| sending::fits(batch.iter().map(|other| &other.item), &ready.item));
        match open {
            Some(batch) => batch.push(ready),
            None => batches.push(vec![ready]),
        }
    }
    batches
}

/// The request that sends a batch, which has at least one message.
pub fn request(batch: &[Ready]) -> SendRequest {
    SendRequest::new(&batch[0].queue, batch.iter().map(|ready| &ready.item))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_together_by_queue_and_in_order() {
        let text = |place, queue: &str| Ready {
            place,
            queue: queue.to_owned(),
            item: Item::Text(place.to_string()),
        };
        let bytes = Ready {
            item: Item::Bytes(Box::default()),
            ..text(3, "a")
        };
        let messages = vec![
            text(0, "a"),
            text(1, "b"),
            text(2, "a"),
            bytes,
            text(4, "a"),
            text(5, "b"),
        ];
        let batches = batches(messages);
        let places: Vec<Vec<usize>> = batches
            .iter()
            .map(|batch| batch.iter().map(|ready| ready.place).collect())
            .collect();
        assert_eq!(places, [vec![0, 2], vec![1, 5], vec![3], vec![4]]);
        assert_eq!(request(&batches[0]).path, "a/messages");
        assert_eq!(&request(&batches[0]).body[..], b"[0,2]");
    }
}
