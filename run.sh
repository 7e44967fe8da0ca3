source /work/h/aligned.env
F="/work/h/aligned/.venv/bin/python -W ignore -m flawscope"
cd /tmp/w/h/aligned/e
$F data demo demo --kind metal_plate --size 128 --train 16 --test-good 4 --test-defective 2 || $F data demo demo --size 128 --train 16 --test-good 4 --test-defective 2
C=$(ls demo | head -1)
$F train patchcore --data demo/$C --backbone mobilenetv2_100 --weights /work/shared/weights/mobilenetv2_100_imagenet.safetensors --set 'backbone_options={"pad_type":"same"}' --set mean=[0.502,0.502,0.502] --set std=[0.502,0.502,0.502] --image-size 128 --set held_out_minimum=4 --set coreset=300 --overwrite --out p.run
$F export p.run --out p.flaw --overwrite
$F engine build p.flaw --runtime tensorrt-rtx --target 8.9
$F explain p.run | tail -12
$F export p.run --out p8.flaw --precision int8 --calibration demo/$C --overwrite
