"""Talks to a server with the official clients of the APIs that it speaks, and checks what comes back."""

import json
import sys

import anthropic
import ollama
import openai

ADDRESS, KEY = sys.argv[1:3]
MODEL = "demo"
QUESTION = [{"role": "user", "content": "What is 34 plus 58?"}]
WEATHER = [{"role": "user", "content": "What will the weather be in Paris in the next 3 days?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA}}


def check_arguments(arguments):
    assert set(arguments) == {"city", "days"}, arguments
    assert isinstance(arguments["city"], str) and isinstance(arguments["days"], int), arguments


def refused(error, call, *args, **kwargs):
    """The error with which a call is refused."""
    try:
        call(*args, **kwargs)
    except error as caught:
        return caught
    raise AssertionError(f"{error.__name__} was expected")


def openai_chat(client):
    ask = {"model": MODEL, "messages": QUESTION, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    message = whole.choices[0].message
    assert "92" in message.content and message.reasoning_content, message
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    text, thoughts, usage = "", "", None
    for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            thoughts += getattr(choice.delta, "reasoning_content", None) or ""
    assert (text, thoughts) == (message.content, message.reasoning_content), (text, thoughts)
    assert usage.completion_tokens == whole.usage.completion_tokens

    brief = client.chat.completions.create(
        model=MODEL, messages=QUESTION, n=3, temperature=1, seed=5, max_tokens=8, logprobs=True, top_logprobs=3,
        reasoning_effort="none",
    )
    assert len(brief.choices) == 3
    for choice in brief.choices:
        tokens = choice.logprobs.content
        assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens), tokens
        assert "".join(token.token for token in tokens).strip() == choice.message.content.strip()


def openai_tools(client):
    ask = {"model": MODEL, "messages": WEATHER, "tools": [TOOL], "temperature": 0, "reasoning_effort": "none"}
    choice = client.chat.completions.create(**ask, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert choice.finish_reason == "tool_calls", choice
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather"
    check_arguments(json.loads(call.function.arguments))

    with client.chat.completions.stream(**ask, tool_choice="required", parallel_tool_calls=False) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls[0]
    assert streamed.function.arguments == call.function.arguments

    result = {"role": "tool", "tool_call_id": call.id, "content": "It will rain."}
    messages = [*WEATHER, choice.message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(**{**ask, "messages": messages})
    assert answer.choices[0].message.content is not None or answer.choices[0].message.tool_calls


def openai_formats(client):
    schema = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    ask = {"model": MODEL, "messages": WEATHER, "temperature": 0, "max_tokens": 400}
    check_arguments(json.loads(client.chat.completions.create(**ask, response_format=schema).choices[0].message.content))
    choice = {"type": "choice", "choices": ["rain", "sun"]}
    answer = client.chat.completions.create(**ask, extra_body={"response_format": choice})
    assert answer.choices[0].message.content in choice["choices"], answer


def openai_rest(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    text = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=5, temperature=0)
    assert text.choices[0].text and text.choices[0].finish_reason == "length"

    answer = client.responses.create(model=MODEL, input=QUESTION[0]["content"], temperature=0)
    assert "92" in answer.output_text and answer.status == "completed", answer
    with client.responses.stream(model=MODEL, input=QUESTION[0]["content"], temperature=0) as stream:
        kinds = [event.type for event in stream]
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds
        assert stream.get_final_response().output_text == answer.output_text
    tool = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
    called = client.responses.create(
        model=MODEL, input=WEATHER, tools=[tool], tool_choice="required", parallel_tool_calls=False, temperature=0,
        reasoning={"effort": "none"},
    )
    call = called.output[-1]
    check_arguments(json.loads(call.arguments))
    items = [*WEATHER, *called.output, {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}]
    assert client.responses.create(model=MODEL, input=items, tools=[tool], temperature=0).status == "completed"


def openai_errors(client):
    create = client.chat.completions.create
    error = refused(openai.NotFoundError, create, model="gpt-5", messages=QUESTION)
    assert error.code == "model_not_found" and error.param == "model", error
    error = refused(openai.BadRequestError, create, model=MODEL, messages=QUESTION, logit_bias={"5": 1})
    assert error.code == "unsupported_parameter" and error.param == "logit_bias", error
    error = refused(openai.BadRequestError, create, model=MODEL, messages=QUESTION, extra_body={"tempratur": 1})
    assert error.code == "unknown_parameter", error
    other = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, other.models.list)


def anthropic_messages(client):
    # The client has no parameter for the temperature any more; the API has.
    greedy = {"extra_body": {"temperature": 0}}
    ask = {"model": MODEL, "messages": QUESTION, "max_tokens": 300, **greedy}
    thinking = {"type": "enabled", "budget_tokens": 200}
    whole = client.messages.create(**ask, thinking=thinking)
    assert [block.type for block in whole.content] == ["thinking", "text"], whole
    assert "92" in whole.content[1].text and whole.stop_reason == "end_turn"
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION, thinking=thinking)
    assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens

    with client.messages.stream(**ask, thinking=thinking) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop", kinds
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]

    tool = {"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}
    ask = {"model": MODEL, "messages": WEATHER, "max_tokens": 300, "tools": [tool], **greedy}
    with client.messages.stream(**ask, tool_choice={"type": "any", "disable_parallel_tool_use": True}) as stream:
        called = stream.get_final_message()
    assert called.stop_reason == "tool_use", called
    check_arguments(called.content[-1].input)
    result = {"type": "tool_result", "tool_use_id": called.content[-1].id, "content": "It will rain."}
    messages = [*WEATHER, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**{**ask, "messages": messages}).role == "assistant"

    stopped = client.messages.create(model=MODEL, messages=QUESTION, max_tokens=100, stop_sequences=["92"], **greedy)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "92"), stopped
    error = refused(anthropic.BadRequestError, client.messages.create, **{**ask, "extra_body": {"container": "c"}})
    assert error.body["error"]["type"] == "invalid_request_error", error.body


def ollama_chat(client):
    options = {"temperature": 0}
    whole = client.chat(MODEL, QUESTION, options=options)
    assert "92" in whole.message.content and whole.message.thinking, whole
    parts = list(client.chat(MODEL, QUESTION, options=options, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].done and parts[-1].eval_count == whole.eval_count
    answer = client.chat(MODEL, WEATHER, format=SCHEMA, think=False, options=options)
    check_arguments(json.loads(answer.message.content))
    called = client.chat(MODEL, WEATHER, tools=[TOOL], think=False, options=options)
    for call in called.message.tool_calls or []:
        check_arguments(call.function.arguments)
    assert client.generate(MODEL, "Once", options={**options, "num_predict": 3}).done_reason == "length"
    assert client.list().models[0].model == MODEL
    assert "tools" in client.show(MODEL).capabilities
    assert refused(ollama.ResponseError, client.chat, "llama3", QUESTION).status_code == 404
    assert refused(ollama.ResponseError, client.chat, MODEL, QUESTION, options={"mirostat": 1}).status_code == 400


def main():
    of_openai = openai.OpenAI(base_url=f"{ADDRESS}/v1", api_key=KEY, max_retries=0)
    of_anthropic = anthropic.Anthropic(base_url=ADDRESS, api_key=KEY, max_retries=0)
    of_ollama = ollama.Client(ADDRESS, headers={"Authorization": f"Bearer {KEY}"})
    for client, checks in [
        (of_openai, [openai_chat, openai_tools, openai_formats, openai_rest, openai_errors]),
        (of_anthropic, [anthropic_messages]),
        (of_ollama, [ollama_chat]),
    ]:
        for check in checks:
            check(client)
            print(f"{check.__name__}: as it should be")


if __name__ == "__main__":
    main()
