//! Rows that are longer than the model reads: the policies for long prompts and responses, with the model's positions as
//! a further limit.

use super::{EncodeOptions, Limits};
use crate::data::long::{LongPrompt, LongResponse};

/// What is to be done with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Cut it to these limits, if it is longer.
    Within {
        prompt: usize,
        response: usize,
    },
    Drop,
    Refuse,
}

impl EncodeOptions {
    /// What is to be done with a prompt and responses of so many tokens, the longest counted. What the limits cut anyway is
    /// cut first. Where both may be cut, the response is, as TRL's `max_length` cuts the end; but no prompt that fills the
    /// model by itself stays whole.
    pub(super) fn fit(&self, prompt: usize, response: usize) -> Fit {
        let (Limits { prompt: most_prompt, response: most_response, .. }, positions) = (self.limits, self.positions);
        let cuts_prompt = matches!(self.long_prompt, LongPrompt::KeepStart | LongPrompt::KeepEnd);
        let cuts_response = self.long_response == LongResponse::KeepStart;
        if prompt > most_prompt && !cuts_prompt || response > most_response && !cuts_response {
            // The limits have their own say.
            return Fit::Within { prompt: most_prompt, response: most_response };
        }
        let (prompt, response) = (prompt.min(most_prompt), response.min(most_response));
        if prompt.saturating_add(response) <= positions {
            return Fit::Within { prompt: most_prompt, response: most_response };
        }
        if cuts_response && prompt < positions {
            return Fit::Within { prompt: most_prompt, response: positions - prompt };
        }
        if cuts_prompt && response < positions {
            return Fit::Within { prompt: positions - response, response: most_response };
        }
        if cuts_prompt && cuts_response && positions > 1 {
            return Fit::Within { prompt: positions / 2, response: positions - positions / 2 };
        }
        if self.long_prompt == LongPrompt::Drop || self.long_response == LongResponse::Drop {
            return Fit::Drop;
        }
        Fit::Refuse
    }

    /// Says that a row is too long for the model, and what helps.
    pub(super) fn too_long_for_the_model(&self, tokens: usize) -> String {
        too_long_for_the_model(tokens, self.positions)
    }
}

/// Says that a row is too long for a model of so many positions, and what helps.
pub fn too_long_for_the_model(tokens: usize, positions: usize) -> String {
    format!(
        "prompt and response have {tokens} tokens, the model has {positions} positions: shorten the row, or let \
         data.long_response or data.long_prompt cut or drop it (beside data.max_response_tokens and \
         data.max_prompt_tokens)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(long_prompt: LongPrompt, long_response: LongResponse, prompt: usize, response: usize) -> Fit {
        let limits = Limits { prompt: 100, response: 100, tree: 1000 };
        EncodeOptions { long_prompt, long_response, positions: 128, ..EncodeOptions::new(limits) }.fit(prompt, response)
    }

    #[test]
    fn positions_are_one_more_limit() {
        use LongPrompt::{Drop, Error, KeepEnd, KeepStart};
        let within = |prompt, response| Fit::Within { prompt, response };
        for (prompt_policy, response_policy, prompt, response, want) in [
            (Error, LongResponse::Error, 64, 64, within(100, 100)),
            (Error, LongResponse::Error, 65, 64, Fit::Refuse),
            (Drop, LongResponse::Error, 65, 64, Fit::Drop),
            (Error, LongResponse::Drop, 65, 64, Fit::Drop),
            (Error, LongResponse::KeepStart, 65, 64, within(100, 63)),
            (KeepStart, LongResponse::Error, 65, 64, within(64, 100)),
            (KeepEnd, LongResponse::Drop, 65, 64, within(64, 100)),
            (KeepEnd, LongResponse::KeepStart, 65, 64, within(100, 63)),
            // The limits cut these to 100 and 28 first.
            (KeepEnd, LongResponse::KeepStart, 500, 28, within(100, 100)),
            (KeepEnd, LongResponse::Error, 500, 28, within(100, 100)),
            (Error, LongResponse::KeepStart, 101, 100, within(100, 100)),
        ] {
            let found = fit(prompt_policy, response_policy, prompt, response);
            assert_eq!(found, want, "{prompt_policy:?} {response_policy:?} {prompt} {response}");
        }
    }

    #[test]
    fn a_prompt_and_a_response_that_both_fill_the_model() {
        let limits = Limits { prompt: 500, response: 500, tree: 1000 };
        let cut = (LongPrompt::KeepEnd, LongResponse::KeepStart);
        let options =
            EncodeOptions { long_prompt: cut.0, long_response: cut.1, positions: 128, ..EncodeOptions::new(limits) };
        assert_eq!(options.fit(300, 300), Fit::Within { prompt: 64, response: 64 });
        assert_eq!(options.fit(300, 28), Fit::Within { prompt: 100, response: 500 });
    }
}
