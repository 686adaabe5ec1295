import pytest


def test_tokenize_and_detokenize_are_inverse(client):
    text = "hé 日本!"
    tokens = client.post("/tokenize", json={"prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(text.encode())
    assert client.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": text}


def test_messages_are_tokenised_as_chat_would(client):
    messages = [{"role": "user", "content": "hi"}]
    tokens = client.post("/tokenize", json={"messages": messages, "return_token_strs": True}).json()
    assert "".join(tokens["token_strs"]) == "<|user|>hi\n<|assistant|>"
    closed = client.post("/tokenize", json={"messages": messages, "add_generation_prompt": False}).json()
    assert closed["count"] == len("<|user|>hi\n")


def test_the_info_has_what_lm_eval_looks_for(client):
    info = client.get("/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"], info["model_max_length"]) == ("<eos>", "<bos>", 512)


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}])
def test_either_a_prompt_or_messages_are_tokenised(client, body):
    assert client.post("/tokenize", json=body).json()["error"]["param"] == "prompt"


def test_ids_beyond_the_vocabulary_are_refused(client):
    answer = client.post("/detokenize", json={"tokens": [10**12]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_token")
