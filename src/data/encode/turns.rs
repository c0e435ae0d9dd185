//! Which part of a rendered conversation is an assistant's: turns found from what was said, not from the start of texts.
//!
//! A turn begins where the conversation before it, rendered with the generation prompt, stops agreeing with the whole;
//! it ends where the conversation up to it does. Both are compared behind the last piece of text that they share, so a
//! template may rewrite earlier turns, move the system text or leave reasoning out.

use std::ops::Range;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{
    marks::{self, Kind, Marked, Piece},
    renderer::Renderer,
};
use crate::data::records::{excerpt, role};

/// A rendered conversation, and where the pieces of its messages are.
pub(super) struct Whole<'a> {
    pub messages: &'a [Value],
    pub pieces: Vec<Piece>,
    pub marked: Marked,
}

/// Where a beginning of the conversation stops agreeing with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    /// Behind the last piece that both share, in bytes of the whole.
    anchor: usize,
    /// Bytes from there on that both share.
    pub common: usize,
}

impl Split {
    /// The same anchor with fewer bytes behind it.
    pub fn shortened(self, common: usize) -> Self {
        Self { common, ..self }
    }

    fn at(self) -> usize {
        self.anchor + self.common
    }
}

/// An assistant's turn in the text of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Turn {
    pub message: usize,
    /// Bytes: what is said, with what the template writes to end the turn.
    pub span: Range<usize>,
    /// Where the last visible piece of the message ends.
    said: usize,
}

impl<'a> Whole<'a> {
    /// Renders the messages, as plain text and with marks.
    pub fn new(renderer: &Renderer, messages: &'a [Value], generation: bool) -> Result<Self> {
        let plain = renderer.render(messages, generation)?;
        let pieces = marks::pieces(messages);
        let marked = marks::mark(messages, &pieces, &plain, |messages| renderer.render(messages, generation).ok());
        Ok(Self { messages, pieces, marked })
    }

    pub fn text(&self) -> &str {
        &self.marked.text
    }

    /// Where the rendering of the first messages stops agreeing.
    pub fn split(&self, beginning: &Whole) -> Split {
        let here = |piece: usize| self.marked.places.iter().rfind(|(own, _)| *own == piece).map(|(_, at)| *at);
        let shared = beginning.marked.places.iter().rev().find_map(|&(piece, at)| Some((here(piece)?, at)));
        let (anchor, at) = shared.unwrap_or((0, 0));
        let pairs = self.text()[anchor..].chars().zip(beginning.text()[at..].chars());
        Split { anchor, common: pairs.take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum() }
    }

    fn message_of(&self, place: usize) -> usize {
        self.pieces[self.marked.places[place].0].message
    }

    fn span_of(&self, place: usize) -> Range<usize> {
        let (piece, at) = self.marked.places[place];
        self.marked.span(&self.pieces[piece], at)
    }

    /// First and last place of a message's pieces, where they stand together last: a template may quote one before.
    fn places(&self, message: usize) -> Option<(usize, usize)> {
        let own = |place: &usize| self.message_of(*place) == message;
        let last = (0..self.marked.places.len()).rfind(own)?;
        let first = (0..=last).rev().take_while(own).last()?;
        Some((first, last))
    }

    /// The text between two neighbouring places with the roles of their messages, and where it begins.
    fn gap(&self, before: Option<usize>, after: Option<usize>) -> Option<(String, usize)> {
        let (before, after) = (before?, after.filter(|&after| after < self.marked.places.len())?);
        let [from, to] = [before, after].map(|place| self.message_of(place));
        let (start, end) = (self.span_of(before).end, self.span_of(after).start);
        let roles: Vec<&str> = self.messages.get(from..=to)?.iter().map(role).collect();
        Some((format!("{roles:?}{}", self.text().get(start..end)?), start))
    }

    /// The turns of these messages, an assistant's each, ascending. `opening` is what all conversations of the row share
    /// behind the prompt of the first turn.
    ///
    /// # Errors
    /// The template fails on a beginning of the conversation, or writes another speaker's text into a turn.
    pub fn turns(&self, renderer: &Renderer, prompt: usize, opening: Split) -> Result<Vec<Turn>> {
        let mut turns: Vec<Turn> = Vec::new();
        for message in (prompt..self.messages.len()).filter(|&i| role(&self.messages[i]) == "assistant") {
            let places = self.places(message);
            let free = turns.last().map_or(0, |turn| turn.span.end);
            let start = if message == prompt { opening.at() } else { self.start(renderer, message, places)? };
            let end = self.end(renderer, message, places)?;
            let said = places.map_or(free, |(_, last)| self.span_of(last).end);
            let first = places.map_or(start, |(first, _)| self.span_of(first).start);
            let start = start.min(first).max(free);
            turns.push(Turn { message, span: start..end.max(said).max(start), said });
        }
        turns.iter().try_for_each(|turn| self.check(turn))?;
        Ok(turns)
    }

    fn start(&self, renderer: &Renderer, message: usize, places: Option<(usize, usize)>) -> Result<usize> {
        let gap = places.and_then(|(first, _)| self.gap(first.checked_sub(1), Some(first)));
        renderer.gaps.find(gap, true, || Ok(self.split(&Whole::new(renderer, &self.messages[..message], true)?).at()))
    }

    fn end(&self, renderer: &Renderer, message: usize, places: Option<(usize, usize)>) -> Result<usize> {
        if message + 1 == self.messages.len() {
            return Ok(self.text().len());
        }
        let gap = places.and_then(|(_, last)| self.gap(Some(last), Some(last + 1)));
        renderer.gaps.find(gap, false, || match Whole::new(renderer, &self.messages[..=message], false) {
            Ok(beginning) => Ok(self.split(&beginning).at()),
            // A template that refuses the beginning ends this turn as it ends the last.
            Err(_) => Ok(self.as_the_last(places)),
        })
    }

    /// How far the text behind a turn agrees with the text behind the last piece of all.
    fn as_the_last(&self, places: Option<(usize, usize)>) -> usize {
        let (Some((_, own)), Some(last)) = (places, self.marked.places.len().checked_sub(1)) else { return 0 };
        let [from, end] = [own, last].map(|place| self.span_of(place).end);
        let pairs = self.text()[from..].chars().zip(self.text()[end..].chars());
        from + pairs.take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum::<usize>()
    }

    /// No piece of another message may lie in a turn.
    fn check(&self, turn: &Turn) -> Result<()> {
        for place in 0..self.marked.places.len() {
            let (message, (piece, at)) = (self.message_of(place), self.marked.places[place]);
            ensure!(
                message == turn.message || !turn.span.contains(&at),
                "the chat template writes text of message {} ({}, from `{}`) into the assistant's message {}: name \
                 another template by data.template",
                message + 1,
                excerpt(&self.pieces[piece].text),
                role(&self.messages[message]).escape_debug(),
                turn.message + 1
            );
        }
        Ok(())
    }

    /// Whether the template shows a piece inside of `span`, as it is or escaped for JSON.
    pub fn shows(&self, piece: usize, span: &Range<usize>) -> bool {
        let marked = self.marked.places.iter().any(|(own, at)| *own == piece && span.contains(at));
        marked || shows(&self.text()[span.clone()], &self.pieces[piece])
    }
}

/// Whether a text holds a piece, as it is, escaped for JSON, or with other blanks.
pub(super) fn shows(text: &str, piece: &Piece) -> bool {
    let escaped = || Value::from(piece.text.as_str()).to_string();
    let bare = |text: &str| text.split_whitespace().collect::<String>();
    text.contains(&piece.text)
        || (piece.kind == Kind::Call || piece.text.contains(['"', '\\', '\n']))
            && text.contains(escaped().trim_matches('"'))
        || piece.text.contains(char::is_whitespace) && bare(text).contains(&bare(&piece.text))
}

impl Turn {
    /// The tokens of the turn, which lie at these bytes of the text. One that begins before the turn and reaches into it
    /// belongs to it; one that reaches beyond its end does where it holds something that was said.
    pub fn tokens(&self, text: &str, offsets: &[(usize, usize)]) -> Range<usize> {
        let first = offsets.partition_point(|&(start, end)| end <= self.span.start && start < self.span.start);
        let ends = |&(start, end): &(usize, usize)| {
            let solid = start + text.get(start..end).unwrap_or_default().trim_end().len();
            start >= self.span.end || solid > self.span.end && start >= self.said
        };
        let count = offsets[first..].iter().position(ends).unwrap_or(offsets.len() - first);
        first..first + count
    }
}
