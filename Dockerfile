# The command line in a container, on the CPU. Nobody has built it yet: tell us if it fails.
#     docker build -t slimse .
#     docker run --rm -v "$PWD:/sound" slimse enhance noisy.wav -o enhanced.wav --budget 0.25
FROM python:3.12-slim
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir '/src[plot]' && rm -rf /src \
 && useradd --create-home user
USER user
WORKDIR /sound
# Compiled code for this machine is kept here between runs, if a volume is mounted.
ENV NUMBA_CACHE_DIR=/home/user/.cache/numba
ENTRYPOINT ["slimse"]
CMD ["--help"]
