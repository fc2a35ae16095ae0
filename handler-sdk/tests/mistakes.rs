//! Situation: the usual mistakes of an author. Property: the compiler says what to do, in the words of this SDK.

#[test]
fn each_mistake_gets_a_helpful_message() {
    trybuild::TestCases::new().compile_fail("tests/mistakes/*.rs");
}
