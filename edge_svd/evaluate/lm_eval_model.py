"""A bundle as a model of EleutherAI's lm-evaluation-harness (package lm-eval), called `edge-svd` there.

    import lm_eval
    import edge_svd.evaluate.lm_eval_model  # registers the model

    lm_eval.simple_evaluate(model="edge-svd", model_args="bundle=out,threads=2", tasks=["arc_easy"])

Only the runtime is used: neither torch nor transformers has to be there for it. lm-eval finds models of other packages
by importing them alone; `edge_svd.evaluate.lm_eval` is its command line with this import done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from edge_svd.errors import InputError
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.chat import ChatTemplate
from edge_svd.runtime.generate import generate
from edge_svd.runtime.likelihood import PairError, fitted, kept_length, pair_likelihoods
from edge_svd.runtime.prefix_scorer import PrefixScorer
from edge_svd.runtime.sampling import Sampler
from edge_svd.runtime.schema import TOKENIZER_NAME
from edge_svd.runtime.session import DEFAULT_CHUNK, Session

MAX_NEW_TOKENS = 256
"""Where a task does not say how long an answer may get: lm-eval's own default."""

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@register_model("edge-svd")
class EdgeSvdLM(TemplateLM):
    """A bundle through onnxruntime, one sequence at a time; long beginnings that requests share are computed once.

    Texts are encoded without special tokens; an empty context is BOS, or EOS for a model that has no BOS.
    """

    def __init__(
        self,
        bundle: str,
        threads: int | None = None,
        context: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Open the folder `bundle`; `context` limits the tokens of a text (default: the model's own limit).

        `batch_size`, `max_batch_size` and `device` are what lm-eval hands to every model, and mean nothing here.
        InputError or BundleError if the bundle cannot be used, or the context is outside the model's.
        """
        super().__init__()
        opened = open_bundle(str(bundle))
        limit = opened.manifest.decoder.max_context
        if context is not None and not 2 <= context <= limit:
            raise InputError(f"The context must be between 2 and the model's {limit} tokens, not {context}.")
        self.max_length = context or limit
        self._bundle = opened
        self._threads = threads
        self._scorer = PrefixScorer(opened, threads=threads)
        self._session: Session | None = None
        self._prompt: list[int] = []  # the one before, which the session has read

    @property
    def eot_token_id(self) -> int:
        ends = self._bundle.manifest.decoder.eos_token_ids
        return ends[0] if ends else self._scorer.prefix_id

    @property
    def prefix_token_id(self) -> int:
        return self._scorer.prefix_id

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's caches of requests: by its digest."""
        return f"edge-svd-{self._bundle.manifest.files[TOKENIZER_NAME].sha256}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **settings: Any) -> list[int]:
        return self._scorer.tokenizer.encode(string, special_tokens=bool(add_special_tokens))

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._scorer.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without the prompt for an answer, it ends where the last message does."""
        template = ChatTemplate.from_bundle(self._bundle)
        text = template.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)] if last in text else text

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **settings: Any,
    ) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        pairs = []
        for (_, continuation), first, last in requests:
            try:
                pairs.append(fitted(first or [self.prefix_token_id], last, self.max_length))
            except PairError as error:
                raise InputError(f"The request {continuation[:80]!r} {error}.") from None
        # In this order contexts begin alike as far as they can: many examples before a question are read once.
        order = sorted(range(len(pairs)), key=lambda place: pairs[place].context)
        with tqdm(total=len(order), disable=disable_tqdm, desc="Scoring") as bar:
            for context, group in groupby(order, key=lambda place: pairs[place].context):
                places = list(group)
                likelihoods = self._scorer.likelihoods(context, [pairs[place].continuation for place in places])
                for place, likelihood in zip(places, likelihoods, strict=True):
                    found[place] = likelihood.log_probability, likelihood.greedy
                    self.cache_hook.add_partial("loglikelihood", requests[place][0], found[place])
                bar.update(len(places))
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts behind the prefix, in windows of `max_length` that do not overlap."""
        totals = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Reading"):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            parts = map(make_disjoint_window, windows)
            pairs = [fitted(first, last, self.max_length) for first, last in parts]
            totals.append(sum(found.log_probability for found in pair_likelihoods(self._scorer, pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Answers up to the first of the task's stop texts, an EOS token or the task's number of tokens.

        Greedy, unless the task asks for `do_sample` and a temperature. InputError if answers may be longer than the
        context.
        """
        answers = []
        for request in tqdm(requests, disable=disable_tqdm, desc="Generating"):
            context, settings = request.args
            answers.append(self._answer(context, settings))
            self.cache_hook.add_partial("generate_until", request.args, answers[-1])
        return answers

    def _answer(self, context: str, settings: Mapping[str, Any]) -> str:
        if self._session is None:
            self._session = Session(self._bundle, context=self.max_length, threads=self._threads)
        session = self._session
        longest = next((int(settings[name]) for name in _LENGTHS if settings.get(name) is not None), MAX_NEW_TOKENS)
        room = self.max_length - longest
        if room < 1:
            raise InputError(
                f"Answers of {longest} tokens do not fit the context of {self.max_length}; set a smaller max_gen_toks."
            )
        ids = (self.tok_encode(context) or [self.prefix_token_id])[-room:]
        kept = min(kept_length(self._prompt, ids, DEFAULT_CHUNK), session.position)
        self._prompt = ids
        session.truncate(kept)
        temperature = float(settings.get("temperature") or 0.0)
        sampler = Sampler(temperature if settings.get("do_sample", True) else 0.0, float(settings.get("top_p") or 1.0))
        until = settings.get("until") or []
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        text = ""
        tokens = generate(session, ids[session.position :], max_new_tokens=longest, sampler=sampler)
        for piece in self._scorer.tokenizer.stream(tokens):
            text += piece
            if any(stop in text for stop in stops):
                break
        for stop in stops:
            text = text.split(stop)[0]
        return text
