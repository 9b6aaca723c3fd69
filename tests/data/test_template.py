"""Templates, the encoder and the tokenizers behind it."""

from __future__ import annotations

import pytest
from byte_tokenizer import byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lori_pl.data.problem import Problem
from lori_pl.data.sources.multiplication import multiplication_problem
from lori_pl.data.synthetic import synthetic_problems, vocabulary
from lori_pl.data.template import _LAST_WORD, _RESULT, Encoder, Template
from lori_pl.data.tokenizer import cuts_at_spaces, load_tokenizer, read_tokenizer, same_tokens, synthetic_tokenizer
from lori_pl.errors import LoriError

SYNTHETIC = load_tokenizer("synthetic", True)
BYTES = byte_tokenizer()


def encoder(template: Template | None = None, tokenizer=SYNTHETIC, markers: bool = False) -> Encoder:
    return Encoder(tokenizer, template or Template(), markers)


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(list(ids))


def chosen(problem, tokens, tokenizer=SYNTHETIC, template=None):
    made = encoder(template, tokenizer)
    rationale = made.rationales([problem])[0]
    return [tokenizer.decode([rationale[i]]).strip() for i in made.selected([problem], tokens)[0]]


# ---- the tokenizer of the embedded world --------------------------------------------------------------------------


def test_every_word_number_and_symbol_is_one_token():
    tokenizer = synthetic_tokenizer()
    for word in [*vocabulary(), *map(str, range(100))]:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1, word
        assert ids[0] != tokenizer.unk_token_id, word
    for problem in synthetic_problems(50, 0, operators="+-*/", distractors=2):
        ids = tokenizer(" ".join([problem.question, *problem.steps, problem.answer]))["input_ids"]
        assert tokenizer.unk_token_id not in ids
    assert words(tokenizer, tokenizer("<<48+2=50>>")["input_ids"]) == ["<<", "48", "+", "2", "=", "50", ">>"]


def test_loading_is_the_same_every_time_and_adds_markers_on_demand():
    plain, marked = load_tokenizer("synthetic", False), load_tokenizer("synthetic", True)
    assert load_tokenizer("synthetic", True) is marked
    assert "<bot>" not in plain.get_vocab()
    assert len(marked) == len(plain) + 2
    assert {k: v for k, v in marked.get_vocab().items() if k in plain.get_vocab()} == plain.get_vocab()
    assert marked("4 <bot> 5")["input_ids"][1] == marked.convert_tokens_to_ids("<bot>")
    assert (plain.pad_token_id, plain.eos_token_id) == (0, 1)


def test_every_digit_and_symbol_of_a_product_is_one_token():
    tokenizer = load_tokenizer("digits", False)
    problem = multiplication_problem(2365, 4347, 4)
    text = f"{problem.question} {' '.join(problem.steps)} #### {problem.answer}"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == text.split()
    assert cuts_at_spaces(tokenizer)


@pytest.mark.parametrize("markers", [True, False])
def test_a_tokenizer_survives_its_folder(markers, tmp_path):
    tokenizer = load_tokenizer("synthetic", markers)
    tokenizer.save_pretrained(tmp_path)
    # beside a Qwen model AutoTokenizer would take Qwen's own class, which drops what it does not know
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    again = read_tokenizer(str(tmp_path))
    assert again.get_vocab() == tokenizer.get_vocab()
    text = "Ann has 4 apples . <<4+3=7>> #### 7"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert load_tokenizer(str(tmp_path), True).get_vocab() == SYNTHETIC.get_vocab()


def test_the_end_token_pads_where_there_is_no_padding_token(tmp_path):
    byte_tokenizer(pad=False).save_pretrained(tmp_path / "a")
    assert load_tokenizer(str(tmp_path / "a"), False).pad_token == "</s>"
    byte_tokenizer(pad=True).save_pretrained(tmp_path / "b")
    assert load_tokenizer(str(tmp_path / "b"), False).pad_token == "<pad>"


def test_markers_leave_other_special_tokens_alone(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    tokenizer.save_pretrained(tmp_path)
    marked = load_tokenizer(str(tmp_path), True)
    assert {"<tool>", "<bot>", "<eot>"} <= set(marked.all_special_tokens)
    for token in ("<tool>", "<bot>", "<eot>"):
        assert len(marked(token, add_special_tokens=False)["input_ids"]) == 1
        assert marked.decode(marked(token, add_special_tokens=False)["input_ids"], skip_special_tokens=True) == ""


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(LoriError, match="has no end token, which marks where an answer ends; set its eos_token"):
        load_tokenizer(str(tmp_path), False)


# ---- templates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "Q:"}, r"template.question is 'Q:': it must contain \{question\}"),
        ({"rationale": ""}, r"template.rationale is '': it must contain \{rationale\}"),
        ({"answer": "{result}"}, r"template.answer is '\{result\}': it must contain \{answer\}"),
        ({"answer_prompt": "  "}, "template.answer_prompt is empty"),
        ({"system": "Be brief."}, "template.system is set but template.chat is false"),
    ],
)
def test_bad_templates_are_one_line(fields, message):
    with pytest.raises(LoriError, match=message) as error:
        Template(**fields)
    assert "\n" not in str(error.value)


def test_text_around_each_part():
    template = Template("Q: {question}\n", "Think: {rationale} .", " ; ", "So", " {answer} !")
    assert template.question_text("why {rationale}?", SYNTHETIC) == "Q: why {rationale}?\n"
    assert template.rationale_text(["a", "b"]) == "Think: a ; b ."
    assert template.rationale_text([]) == ""
    assert template.answer_text("5") == " 5 !"


def test_a_prompt_without_tokens_and_missing_markers_are_refused():
    with pytest.raises(LoriError, match="the tokenizer lacks <bot> and <eot>: load it with load_tokenizer"):
        encoder(tokenizer=load_tokenizer("synthetic", False), markers=True)
    with pytest.raises(LoriError, match="the tokenizer lacks <bot> and <eot>"):
        encoder(tokenizer=BYTES, markers=True)
    silent = PreTrainedTokenizerFast(tokenizer_object=synthetic_tokenizer().backend_tokenizer, eos_token="<eos>")
    from tokenizers.normalizers import Replace

    silent.backend_tokenizer.normalizer = Replace("####", "")
    with pytest.raises(LoriError, match=r"template.answer_prompt '####' has no tokens in this tokenizer"):
        encoder(tokenizer=silent)


# ---- the encoder --------------------------------------------------------------------------------------------------


def test_parts_are_encoded_apart():
    problem = Problem("p", "Bob has 7 coins .", ["<<7+1=8>>", "<<8*2=16>>"], "16")
    made = encoder(markers=True)
    assert words(SYNTHETIC, made.questions([problem.question])[0]) == ["Bob", "has", "7", "coins", "."]
    rationale = " ".join(words(SYNTHETIC, made.rationales([problem])[0]))
    assert rationale == "<< 7 + 1 = 8 >> << 8 * 2 = 16 >>"
    assert words(SYNTHETIC, made.answers([problem])[0]) == ["16", "<eos>"]
    assert words(SYNTHETIC, made.prompt) == ["####"]
    assert words(SYNTHETIC, made.suffix) == ["<eot>", "####"]
    assert words(SYNTHETIC, encoder().suffix) == ["####"]
    assert made.questions([]) == made.rationales([]) == made.answers([]) == []


def test_a_start_token_stands_before_the_question_only():
    problem = Problem("p", "Ann", ["<<1+1=2>>"], "2")
    made = encoder(tokenizer=BYTES)
    assert made.start == [0]
    question = made.questions(["Ann"])[0]
    assert question == BYTES("Ann")["input_ids"]
    assert question.count(0) == 1
    for part in (*made.rationales([problem]), *made.answers([problem]), made.prompt):
        assert 0 not in part
    assert encoder(tokenizer=byte_tokenizer(start=False)).start == []
    assert encoder().start == []


def test_a_chat_template_writes_its_own_start_token():
    tokenizer = byte_tokenizer(chat=True)
    made = encoder(Template(question="{question} Think.", chat=True, system="Be brief."), tokenizer)
    ids = made.questions(["How many?"])[0]
    assert tokenizer.decode(ids) == "<s>[system]Be brief.</s>[user]How many? Think.</s>[assistant]"
    assert ids.count(0) == 1
    assert made.start == []
    with pytest.raises(LoriError, match=r"the tokenizer has no chat template; set data\.template\.chat to false"):
        encoder(Template(chat=True), BYTES).questions(["How many?"])


@pytest.mark.parametrize(
    ("steps", "tokens", "expected"),
    [
        (["<<48/2=24>>", "<<24+1=25>>"], "all", "<< 48 / 2 = 24 >> << 24 + 1 = 25 >>"),
        (["<<48/2=24>>", "<<24+1=25>>"], "no_delimiters", "48 2 24 24 1 25"),
        (["<<48/2=24>>", "<<24+1=25>>"], "step_results", "24 25"),
        (["<<24+24=24>>", "<<24+24=24>>"], "step_results", "24 24"),
        (["<<48/2=24>>", "<<24+1=25>>"], "before_results", "= ="),
        (["Then Ann has 4 more .", "It is 7"], "before_results", "4 is"),
        (["7", "<<1+6=7>>"], "before_results", "="),
        ([], "before_results", ""),
        (["Then Ann has 4 more .", "It is 7"], "step_results", "more 7"),
        (["Ann has 4 = 4 apples .", "many"], "step_results", "4 many"),
        ([], "all", ""),
        ([], "no_delimiters", ""),
        ([], "step_results", ""),
    ],
)
def test_rationale_tokens_by_hand(steps, tokens, expected):
    assert " ".join(chosen(Problem("p", "Bob", steps, "1"), tokens)) == expected


def test_a_rationale_without_its_last_step():
    made = encoder(Template(drop_last_step=True))
    problems = [
        Problem("p", "q", ["<<48/2=24>>", "<<24+1=25>>", "<<25-5=20>>"], "20"),
        Problem("p", "q", ["<<1+1=2>>"], "2"),
        Problem("p", "q", [], "2"),
    ]
    ids = made.rationales(problems)
    assert [SYNTHETIC.decode(row) for row in ids] == ["<< 48 / 2 = 24 >> << 24 + 1 = 25 >>", "", ""]
    places = made.selected(problems, "step_results")
    assert [SYNTHETIC.decode([ids[0][i] for i in places[0]]), *places[1:]] == ["24 25", [], []]
    assert Template().kept(["a", "b"]) == ["a", "b"]


def test_results_are_found_at_their_place_not_by_their_text():
    # the prefix of the template and the first step hold the second step's text
    template = Template(rationale="4 = 5 and {rationale} and 5", step_separator=" then ")
    made = encoder(template)
    problem = Problem("p", "Bob", ["4 = 5 more", "4 = 5"], "1")
    text = template.rationale_text(problem.steps)
    assert text == "4 = 5 and 4 = 5 more then 4 = 5 and 5"
    assert made.selected([problem], "step_results") == [[6, 11]]


@pytest.mark.parametrize(
    ("step", "result"),
    [
        ("She sold 48/2 = <<48/2=24>>24 clips in May.", "24"),
        ("5 + 5 = $10.00.", "$10.00"),
        ("x = 1,234 dollars", "1,234"),
        ("<<1/3=0.33>>", "0.33"),
        ("Every lempus is a gorpus.", "gorpus"),
        ("The total is $72.", "$72"),
        ("+ 0 6 6 1 ( 5 2 8 2 )", "5 2 8 2"),
    ],
)
def test_results_in_a_byte_level_tokenizer(step, result):
    made = encoder(tokenizer=BYTES)
    problem = Problem("p", "q", [step], "1")
    ids = made.rationales([problem])[0]
    places = made.selected([problem], "step_results")[0]
    assert places == list(range(places[0], places[-1] + 1))
    text = BYTES.decode([ids[i] for i in places])
    # tokens may reach beyond the result on either side, but no token lies wholly outside
    assert result in text
    assert len(text) <= len(result) + 4


def test_a_step_without_a_result_gives_none():
    assert chosen(Problem("p", "q", [">>", "<<1+1=2>>"], "2"), "step_results") == ["2"]


def test_selected_needs_a_fast_tokenizer(monkeypatch):
    monkeypatch.setattr(type(SYNTHETIC), "is_fast", False)
    with pytest.raises(LoriError, match="rationale_tokens 'step_results' needs a fast tokenizer"):
        encoder().selected([Problem("p", "q", ["a"], "1")], "step_results")


TEXT = st.lists(
    st.sampled_from(
        ["Ann", "has", "17", "<<4+3=7>>", "=", "x", "é", "<bot>", ".", ",", " ", "  ", "\n", "\t", "\x1c", "\u00a0"]
    )
).map("".join)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, max_size=5))
@pytest.mark.parametrize("tokenizer", [SYNTHETIC, BYTES])
def test_ids_are_those_of_the_whole_text(tokenizer, texts):
    made = encoder(tokenizer=tokenizer)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert made.rationales([Problem("p", "q", [text], "1") for text in texts]) == expected
    assert made.questions(texts) == [made.start + ids for ids in expected]
    assert made.answers([Problem("p", "q", [], text) for text in texts]) == [[*ids, made.end] for ids in expected]


@settings(max_examples=60, deadline=None)
@given(chains=st.lists(st.lists(TEXT, max_size=4), max_size=4), separator=st.sampled_from(["", " ", "\n", " = "]))
@pytest.mark.parametrize("tokenizer", [SYNTHETIC, BYTES])
def test_selections_are_those_token_by_token(tokenizer, chains, separator):
    template = Template(rationale="So = {rationale} 5 .", step_separator=separator)
    made = encoder(template, tokenizer)
    expected = {"all": [], "no_delimiters": [], "step_results": [], "before_results": []}
    for steps in chains:
        text, results, start = template.rationale_text(steps), [], len("So = ")
        for step in steps:
            if match := _RESULT.search(step) or _LAST_WORD.search(step):
                results.append((start + match.start(1), start + match.end(1)))
            start += len(step) + len(separator)
        spans = list(
            enumerate(tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])
        )
        expected["all"].append([i for i, _ in spans])
        expected["no_delimiters"].append([i for i, (a, b) in spans if any(c.isalnum() for c in text[a:b])])
        expected["step_results"].append(
            [i for i, (a, b) in spans if any(a < high and b > low for low, high in results)]
        )
        expected["before_results"].append([i - 1 for i in expected["step_results"][-1] if i > 0])
    problems = [Problem("p", "q", steps, "1") for steps in chains]
    for tokens, places in expected.items():
        assert made.selected(problems, tokens) == places


def test_words_are_known_apart_only_by_the_embedded_rules(tmp_path):
    assert cuts_at_spaces(SYNTHETIC)
    SYNTHETIC.save_pretrained(tmp_path)
    tokenizer = read_tokenizer(str(tmp_path))
    assert cuts_at_spaces(tokenizer)
    assert not cuts_at_spaces(BYTES)
    tokenizer.add_tokens(["Ann has"])
    assert not cuts_at_spaces(tokenizer)
    question = "Ann has 4"
    assert encoder(tokenizer=tokenizer).questions([question]) == [tokenizer(question)["input_ids"]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 6))
def test_selections_are_ordered_places_in_the_rationale(seed, steps):
    problems = synthetic_problems(2, seed, min_steps=steps, max_steps=steps)
    made = encoder()
    lengths = [len(row) for row in made.rationales(problems)]
    everything = made.selected(problems, "all")
    assert everything == [list(range(length)) for length in lengths]
    assert lengths == [7 * steps] * 2
    for tokens, expected in (("no_delimiters", 3 * steps), ("step_results", steps), ("before_results", steps)):
        for row in made.selected(problems, tokens):
            assert len(row) == expected
            assert row == sorted(set(row))
    # the last result is the answer
    last = [made.rationales([p])[0][made.selected([p], "step_results")[0][-1]] for p in problems]
    assert [SYNTHETIC.decode([token]) for token in last] == [p.answer for p in problems]


def test_equal_vocabularies_with_other_merges_are_other_tokenizers():
    def bpe(*merges):
        vocab = {piece: i for i, piece in enumerate(("</s>", "a", "b", "c", "ab", "bc", "abc"))}
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE(vocab, list(merges))), eos_token="</s>", pad_token="</s>"
        )

    left, right = ("a", "b"), ("b", "c")
    assert bpe(left).tokenize("abc") != bpe(right).tokenize("abc")
    assert same_tokens(bpe(left), bpe(left))
    assert not same_tokens(bpe(left), bpe(right))


def test_in_a_chat_equal_vocabularies_with_other_turns_are_other_tokenizers():
    one, other, ended = (byte_tokenizer(chat=True) for _ in range(3))
    other.chat_template = one.chat_template.replace("[assistant]", "[model]")
    ended.eos_token = "<pad>"
    assert same_tokens(one, byte_tokenizer(chat=True), chat=True)
    for different in (other, ended, BYTES):
        assert same_tokens(one, different)
        assert not same_tokens(one, different, chat=True)
