/** The ONNX file of each precision, in the Hub's layout; the keys are transformers.js's names. */
export const FILES = { fp32: "model.onnx", fp16: "model_fp16.onnx", q8: "model_quantized.onnx" };
