//! Answers of the producer.

use super::failure::EmitFailure;
use super::token::EmitToken;

/// The producer's answer for one record.
#[derive(Debug)]
pub struct Delivery {
    /// The record.
    pub token: EmitToken,
    /// Why it was not produced; `None` if all in-sync replicas have it.
    pub failure: Option<Box<EmitFailure>>,
}

impl Delivery {
    /// The record is acknowledged.
    pub fn acknowledged(token: EmitToken) -> Self {
        Self {
            token,
            failure: None,
        }
    }

    /// The record was not produced.
    pub fn failed(token: EmitToken, failure: EmitFailure) -> Self {
        Self {
            token,
            failure: Some(Box::new(failure)),
        }
    }
}
